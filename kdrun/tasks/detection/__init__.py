"""The task of detection: images in, boxes with a class each out. Models, augmentation and metric are those of ultralytics."""
