"""Reference detectors in plain torch, written from their public definitions: one model a file, published weights load.

    graphprune run examples.detectors.yolov3:model --rate 0.5 --scope group
    python -m examples.detectors export yolov3 --weights yolov3.weights
"""

#: Models by name; each is a module here with a factory ``model`` that the command line takes.
MODELS = ("yolov3", "yolov4", "yolov8", "faster_rcnn", "retinaface", "arcface")
