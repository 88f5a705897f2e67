"""The words of zero-shot classification: 1000 ImageNet class names and 80 sentence templates, as open_clip ships them.

    python scripts/zero_shot_meta.py [names | templates]
"""
import sys

from muse.evaluation.zero_shot import get_templates, imagenet_class_names
from muse.utils.cli import run

imagenet_classnames = imagenet_class_names()  # 1000 str in label order
openai_imagenet_template = get_templates("openai")  # 80 functions of a class name


def main(argv=None):
    chosen = (sys.argv[1:] if argv is None else argv) or ["names"]
    if chosen == ["names"]:
        print("\n".join(f"{label}\t{name}" for label, name in enumerate(imagenet_classnames)))
    elif chosen == ["templates"]:
        print("\n".join(template("{}") for template in openai_imagenet_template))
    else:
        raise ValueError(f"unknown argument {' '.join(chosen)!r}: say names or templates")


if __name__ == "__main__":
    run(main)
