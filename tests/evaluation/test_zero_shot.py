import pytest
import torch
import torch.nn.functional as F

from muse.evaluation.zero_shot import classify, embed_classes, evaluate_zero_shot, get_class_names, get_templates

NAMES = ["cat", "dog", "bus", "sun", "cup", "key", "toy"]


class Text:
    """Each class name has its own axis; the length of the sentence adds a little of the last one."""

    def encode(self, sentences):
        rows = torch.zeros(len(sentences), 8)
        for row, sentence in zip(rows, sentences):
            row[next(i for i, name in enumerate(NAMES) if name in sentence)] = 1
            row[7] = 0.01 * len(sentence)
        return F.normalize(rows, dim=-1)


class Model(torch.nn.Module):
    """Reads the class from the first pixel: right for even classes, the next class for odd ones."""

    def forward(self, images, decode=True):
        level = (images[:, 0, 0, 0] * 255).round().long()
        level = torch.where(level % 2 == 0, level, (level + 1) % 7)
        eye = torch.eye(7, 8)[level]
        return type("Output", (), {"semantic": eye})()


def batches(labels):
    for part in torch.tensor(labels).split(3):
        yield {"image": part.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4), "label": part}


def test_class_zero_counts_like_any_other():
    """The public release read `label or default` and dropped every image of class 0."""
    result = evaluate_zero_shot(Model(), Text(), batches([0, 0, 0, 1]), NAMES, get_templates("simple"))
    assert result["images"] == 4
    assert result["zero_shot_top1"] == 0.75
    assert result["majority_share"] == 0.75
    assert result["zero_shot_per_class"] == {"cat": 1.0, "dog": 0.0}
    assert result["zero_shot_mean_per_class"] == 0.5


def test_top5_and_its_absence():
    scores = torch.tensor([[6, 5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5, 6.0]])
    result = classify(scores, torch.tensor([4, 0]), torch.eye(7), NAMES)
    assert (result["zero_shot_top1"], result["zero_shot_top5"]) == (0, 0.5)
    few = classify(scores[:, :3], torch.tensor([0, 2]), torch.eye(3), NAMES[:3])
    assert few["zero_shot_top1"] == 1 and "zero_shot_top5" not in few


def test_class_embedding_is_the_normalised_mean_of_normalised_sentences():
    templates = get_templates("simple")
    embeddings = embed_classes(Text(), NAMES, templates, batch_size=4)
    sentences = Text().encode([template("bus") for template in templates])
    assert torch.allclose(embeddings[2], F.normalize(sentences.mean(0), dim=0))
    assert embeddings.shape == (7, 8)


def test_label_outside_the_class_list():
    with pytest.raises(ValueError, match="label 7 is outside the list of 7 classes"):
        evaluate_zero_shot(Model(), Text(), batches([0, 7]), NAMES, get_templates("simple"))


def test_text_encoder_of_another_width():
    with pytest.raises(ValueError, match="8 dimensions and the text encoder 5"):
        classify(torch.eye(8), torch.zeros(8).long(), torch.eye(7, 5), NAMES)


def test_templates(tmp_path):
    pytest.importorskip("open_clip")
    openai = [template("newt") for template in get_templates("openai")]
    assert len(set(openai)) == 80 and all("newt" in sentence for sentence in openai)
    (tmp_path / "t.txt").write_text("one {} here\n\n{} {}\n")
    assert [template("x") for template in get_templates(tmp_path / "t.txt")] == ["one x here", "x x"]
    (tmp_path / "bad.txt").write_text("no placeholder\n")
    with pytest.raises(ValueError, match="'no placeholder' has no {}"):
        get_templates(tmp_path / "bad.txt")
    with pytest.raises(ValueError, match="no file of templates at clip"):
        get_templates("clip")


def test_class_names(tmp_path):
    pytest.importorskip("open_clip")
    names = get_class_names("imagenet")
    assert len(names) == 1000 and names[0] == "tench"
    assert get_class_names(None, {"classes": ["a", "b"]}) == ["a", "b"]
    with pytest.raises(ValueError, match="pass --classes"):
        get_class_names(None, {"splits": {}})
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no class names"):
        get_class_names(tmp_path / "empty.txt")
