"""Zero-shot classification: an image belongs to the class whose name its semantic feature is nearest to."""
from pathlib import Path

import torch
import torch.nn.functional as F

from muse.evaluation.features import extract

TEMPLATES = ("openai", "simple")
SIMPLE_TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "a picture of a {}.", "a {}.", "{}.")


def imagenet_class_names():
    """The 1000 ImageNet class names in label order, as open_clip ships them."""
    from open_clip import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)


def get_templates(name):
    """Sentence templates, functions of a class name.

    `openai`: the 80 prompts of CLIP's ImageNet evaluation; `simple`: five plain sentences; anything else is a text
    file with one template a line, `{}` standing for the name. Raises ValueError for a file without templates.
    """
    if name == "openai":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return list(OPENAI_IMAGENET_TEMPLATES)
    lines = SIMPLE_TEMPLATES if name == "simple" else _lines(name, "templates", f"or use one of {', '.join(TEMPLATES)}")
    bad = [line for line in lines if "{}" not in line]
    if bad:
        raise ValueError(f"template {bad[0]!r} has no {{}} for the class name: add it")
    return [lambda class_name, line=line: line.replace("{}", class_name) for line in lines]


def get_class_names(source, index=None):
    """Class names in label order.

    Args:
        source: None for the `classes` of the shards' dataset.json, "imagenet", or a text file with one name a line.
        index: dataset.json as a dict, or None.

    Raises ValueError where there are no names.
    """
    if source == "imagenet":
        return imagenet_class_names()
    if source is not None:
        return _lines(source, "class names", "or use imagenet")
    if not (index or {}).get("classes"):
        raise ValueError("the shards have no dataset.json with class names: pass --classes FILE or --classes imagenet")
    return list(index["classes"])


def _lines(path, what, remedy):
    if not Path(path).is_file():
        raise ValueError(f"no file of {what} at {path}: give a text file with one a line, {remedy}")
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} holds no {what}: write one a line, {remedy}")
    return lines


@torch.no_grad()
def embed_classes(text_encoder, class_names, templates, batch_size=256):
    """One unit-norm embedding a class: the mean of its sentences' unit-norm embeddings, normalised again.

    Args:
        text_encoder: TextEncoder, `.encode(list of str) -> B x D`.
        class_names: K names.
        templates: T functions of a name.

    Returns K x D float32 on the CPU.
    """
    sentences = [template(name) for name in class_names for template in templates]
    starts = range(0, len(sentences), batch_size)
    parts = [text_encoder.encode(sentences[i:i + batch_size]).float().cpu() for i in starts]
    embedded = F.normalize(torch.cat(parts), dim=-1).view(len(class_names), len(templates), -1)  # K T D
    return F.normalize(embedded.mean(1), dim=-1)


def classify(semantic, labels, class_embeddings, class_names):
    """Accuracies of the nearest class embedding.

    Args:
        semantic: image features, N x D.
        labels: int64 N, each from 0 to K - 1.
        class_embeddings: K x D.
        class_names: K names.

    Returns dict: `zero_shot_top1`, `zero_shot_top5` (only with more than 5 classes), `zero_shot_per_class` {name:
    accuracy, of the classes that occur}, `zero_shot_mean_per_class`, `majority_share` (the share of the most frequent
    class: what always naming it would score), `images`. Raises ValueError for a label outside the class list or a
    text encoder of another width than the semantic feature.
    """
    check_labels(labels, len(class_names))
    if semantic.shape[1] != class_embeddings.shape[1]:
        raise ValueError(f"the semantic feature has {semantic.shape[1]} dimensions and the text encoder "
                         f"{class_embeddings.shape[1]}: use the text encoder of training (model.text_encoder)")
    count = len(class_names)
    ranked = (semantic @ class_embeddings.T).topk(min(5, count), dim=1).indices  # N 5
    hits = ranked == labels[:, None]
    totals = torch.bincount(labels, minlength=count)
    per_class = torch.bincount(labels[hits[:, 0]], minlength=count).double() / totals.clamp(min=1)
    present = totals > 0
    result = {
        "zero_shot_top1": hits[:, 0].double().mean().item(),
        "zero_shot_mean_per_class": per_class[present].mean().item(),
        "majority_share": totals.max().item() / len(labels),
        "images": len(labels),
        "zero_shot_per_class": {class_names[k]: per_class[k].item() for k in present.nonzero()[:, 0].tolist()},
    }
    if count > 5:
        result["zero_shot_top5"] = hits.any(1).double().mean().item()
    return result


def check_labels(labels, count):
    """Raise ValueError unless every label is from 0 to count - 1."""
    outside = labels[(labels < 0) | (labels >= count)]
    if len(outside):
        raise ValueError(f"label {outside[0].item()} is outside the list of {count} classes (0 to {count - 1}): "
                         "the shards and the class names belong to different data sets")


def evaluate_zero_shot(model, text_encoder, loader, class_names, templates, device="cpu"):
    """Zero-shot accuracy of a model over a labelled loader; the result of `classify`.

    Args:
        model: MUSE_ViT.
        text_encoder: the TextEncoder of training.
        loader: batches with `image` and `label`.
        class_names: names in label order.
        templates: from `get_templates`.
        device: the model's device.
    """
    features = extract(model, loader, ("semantic", "label"), device)
    embeddings = embed_classes(text_encoder, class_names, templates)
    return classify(features["semantic"], features["label"], embeddings, class_names)
