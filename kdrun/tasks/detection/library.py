"""ultralytics, as kdrun uses it: the pinned release, without a network, without a word on the screen, without the user's settings."""

from __future__ import annotations

import atexit
import importlib.metadata
import logging
import os
import shutil
import sys
import tempfile

from kdrun.errors import KdrunError

RELEASE = "8.4.190"  # what kdrun was tested with; its losses and its data change between releases
INSTALL = "pip install 'kdrun[detection]'"


def ready() -> None:
    """Make `import ultralytics` safe; call it before. KdrunError where it is missing, of another release, or cannot be loaded."""
    if "ultralytics.utils" in sys.modules:
        sys.modules["ultralytics.utils"].LOGGER.setLevel(logging.ERROR)
        return
    try:
        release = importlib.metadata.version("ultralytics")
    except importlib.metadata.PackageNotFoundError as error:
        raise KdrunError(
            f"detection needs ultralytics (AGPL-3.0), which is not installed: {INSTALL} brings it"
        ) from error
    if release != RELEASE:
        raise KdrunError(
            f"ultralytics {release} is installed, and kdrun was tested with {RELEASE} alone: "
            f"pip install ultralytics=={RELEASE}"
        )
    # The library reads these when it is imported. It writes its settings into a folder of this process, not into the user's.
    folder = tempfile.mkdtemp(prefix="kdrun-ultralytics-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {
        "YOLO_CONFIG_DIR": folder,
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "0",
        "YOLO_VERBOSE": "False",
    }
    try:
        import ultralytics.utils
    except ImportError as error:
        if "cv2" in str(error) or ".so" in str(error):
            raise KdrunError(
                f"OpenCV cannot be loaded ({error}). It needs system libraries (Debian: apt-get install -y libgl1 libglib2.0-0 libsm6 "
                "libxext6), or the package without windows: pip uninstall -y opencv-python && pip install --force-reinstall "
                "opencv-python-headless"
            ) from error
        raise KdrunError(f"ultralytics cannot be imported: {error}; {INSTALL} brings what it needs") from error
    ultralytics.utils.LOGGER.setLevel(logging.ERROR)
