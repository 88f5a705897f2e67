import logging
import tarfile
from collections import Counter
from itertools import islice

import pytest
import torch

from muse.config.schema import PreprocessingConfig
from muse.data.dataloader import PATIENCE, build_eval_loader, build_train_loader
from muse.data.sources import read_shard

CROP = PreprocessingConfig(16, 16)


def labels(batches):
    return [label for batch in batches for label in batch["label"].tolist()]


def train(config, rank=0, world_size=1, seed=3, fields=("image", "label")):
    return build_train_loader(config, batch_size=4, seed=seed, rank=rank, world_size=world_size, fields=fields)


@pytest.mark.parametrize("world, workers", [(1, 0), (1, 2), (2, 0), (2, 3), (3, 1), (8, 0), (5, 2), (24, 0)])
def test_evaluation_sees_every_sample_exactly_once(shards, world, workers):
    found = [labels(build_eval_loader(shards, CROP, batch_size=4, num_workers=workers, part=(rank, world),
                                      fields=("label",))) for rank in range(world)]
    assert sorted(sum(found, [])) == list(range(20))


@pytest.mark.parametrize("world, workers", [(1, 0), (2, 0), (2, 2)])
def test_limit_takes_the_first_samples_whatever_the_split(shards, world, workers):
    found = [labels(build_eval_loader(shards, CROP, batch_size=4, num_workers=workers, part=(rank, world),
                                      fields=("label",), max_images=9)) for rank in range(world)]
    assert sorted(sum(found, [])) == list(range(9))


def test_batch_holds_what_was_asked_for(shards):
    batch = next(iter(build_eval_loader(shards, CROP, batch_size=3, fields=("image", "caption", "label", "mask"))))
    assert set(batch) == {"key", "image", "caption", "label", "mask"}
    assert batch["key"] == ["part-000.tar/0000", "part-000.tar/0001", "part-000.tar/0002"]
    assert batch["image"].shape == (3, 3, 16, 16) and batch["image"].dtype == torch.uint8
    assert batch["image"].float().mean((1, 2, 3)).tolist() == pytest.approx([0, 1, 2], abs=1)
    assert batch["caption"] == ["caption 0", "caption 1", "caption 2"]
    assert batch["label"].tolist() == [0, 1, 2]
    # 20 x 16 pictures keep columns 2..17; the object covers columns 0..9
    assert batch["mask"].dtype == torch.int64 and batch["mask"][1, 0].tolist() == [2] * 8 + [0] * 8


def test_keys_tell_shards_of_the_same_name_apart(tmp_path, make_tar, make_sample):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        make_tar(tmp_path / folder / "0.tar", {"x": make_sample(1)})
    keys = [key for batch in build_eval_loader(f"{tmp_path}/{{a,b}}/0.tar", CROP, batch_size=4) for key in batch["key"]]
    assert len(set(keys)) == 2


@pytest.mark.parametrize("world, workers", [(1, 0), (1, 2), (3, 2)])
def test_training_order_follows_from_the_seed(shards, dataset_config, world, workers):
    config = dataset_config(shards, num_workers=workers)
    for rank in range(world):
        first, again, other = ([(batch["label"].tolist(), batch["flipped"].tolist(), batch["image"].sum().item())
                                for batch in islice(train(config, rank, world, seed), 6)] for seed in (3, 3, 4))
        assert first == again != other


@pytest.mark.parametrize("world, workers", [(1, 0), (2, 0), (8, 0)])
def test_training_visits_all_samples_equally_often(shards, dataset_config, world, workers):
    config = dataset_config(shards, num_workers=workers, shuffle_buffer=1)
    counts = Counter()
    for rank in range(world):
        counts.update(labels(islice(train(config, rank, world), 480 // world)))
    assert set(counts) == set(range(20))
    assert max(counts.values()) < 1.3 * min(counts.values())


@pytest.mark.parametrize("workers, done", [(0, 5), (2, 4), (2, 5), (3, 7)])
def test_resumed_training_goes_on_with_the_same_batches(shards, dataset_config, workers, done):
    def describe(batch):
        return batch["key"], batch["flipped"].tolist(), batch["image"].sum().item()

    config = dataset_config(shards, num_workers=workers)
    whole = [describe(batch) for batch in islice(train(config), done + 6)]
    loader = train(config)
    assert [describe(batch) for batch in islice(loader, done)] == whole[:done]
    state = loader.state_dict()
    resumed = train(config)
    resumed.load_state_dict(state)
    assert [describe(batch) for batch in islice(resumed, 6)] == whole[done:]


def test_fast_forward_does_not_decode(shards, dataset_config, monkeypatch):
    loader = train(dataset_config(shards))
    list(islice(loader, 50))
    resumed = train(dataset_config(shards))
    resumed.load_state_dict(loader.state_dict())
    decoded = []
    decode = resumed.stream.decode
    monkeypatch.setattr(resumed.stream, "decode", lambda raw, rng: decoded.append(1) or decode(raw, rng))
    list(islice(resumed, 2))
    assert len(decoded) == 8


def test_other_number_of_workers_starts_a_new_order_with_a_warning(shards, dataset_config, caplog):
    loader = train(dataset_config(shards))
    first = [batch["key"] for batch in islice(loader, 5)]
    resumed = train(dataset_config(shards, num_workers=2))
    resumed.load_state_dict(loader.state_dict())
    assert "start in a new order" in caplog.text
    fresh = [batch["key"] for batch in islice(train(dataset_config(shards, num_workers=2)), 5)]
    assert [batch["key"] for batch in islice(resumed, 5)] not in (first, fresh)


def test_mixture_keeps_its_ratio(tmp_path, make_tar, make_sample, dataset_config):
    make_tar(tmp_path / "a.tar", {str(i): make_sample(1) for i in range(3)})
    make_tar(tmp_path / "b.tar", {str(i): make_sample(2) for i in range(30)})
    config = dataset_config([{"shards": f"{tmp_path}/a.tar", "weight": 3}, {"shards": [f"{tmp_path}/b.tar"]}])
    share = labels(islice(train(config), 250)).count(1) / 1000
    assert share == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("broken, reason", [
    ({"jpg": b"no jpeg", "txt": "c"}, "cannot read"), ({"txt": "c"}, "no image"), ({"jpg": None}, "no caption"),
    ({"jpg": None, "txt": "  \n"}, "no caption"), ({"jpg": None, "json": "{}"}, "no caption"),
    ({"jpg": None, "json": "{"}, "Expecting"), ({"jpg": None, "json": "[1]"}, "no caption")])
def test_unusable_sample_is_named_once_counted_and_skipped(tmp_path, make_tar, make_sample, make_image, dataset_config,
                                                            caplog, broken, reason):
    broken = {name: make_image() if content is None else content for name, content in broken.items()}
    make_tar(tmp_path / "a.tar", {**{str(i): make_sample(i) for i in range(30)}, "bad": broken})
    loader = train(dataset_config(f"{tmp_path}/a.tar"), fields=("image", "caption"))
    captions = [caption for batch in islice(loader, 40) for caption in batch["caption"]]
    assert len(captions) == 160 and all(caption.startswith("caption") for caption in captions)
    assert caplog.text.count("a.tar/bad") == 1 and reason in caplog.text
    assert 3 <= loader.skipped[0] <= 7


def test_truncated_jpeg_is_skipped(tmp_path, make_tar, make_sample, make_image):
    content = make_image(size=(200, 160))
    make_tar(tmp_path / "a.tar", {"a": make_sample(0), "b": {"jpg": content[: len(content) // 2]}, "c": make_sample(2)})
    loader = build_eval_loader(f"{tmp_path}/a.tar", CROP, batch_size=4)
    assert [batch["key"] for batch in loader] == [["a.tar/a", "a.tar/c"]]
    assert (loader.samples, loader.skipped) == (2, 1)


@pytest.mark.parametrize("cut, workers", [(0.5, 0), (0.53, 0), (0.6, 0), (0.9, 0), (0.5, 2)])
def test_truncated_shard_gives_what_it_holds_and_is_named(tmp_path, make_tar, make_sample, caplog, cut, workers):
    make_tar(tmp_path / "whole.tar", {f"{i}": make_sample(i) for i in range(8)})
    data = (tmp_path / "whole.tar").read_bytes().rstrip(b"\0")
    (tmp_path / "cut-0.tar").write_bytes(data[: int(len(data) * cut)])
    make_tar(tmp_path / "cut-1.tar", {f"{i}": make_sample(10 + i) for i in range(8)})
    loader = build_eval_loader(f"{tmp_path}/cut-*.tar", CROP, batch_size=4, num_workers=workers,
                               fields=("image", "caption", "label", "mask"), max_skipped_fraction=0.2)
    found = sorted(labels(loader))
    assert found == [*range(len(found) - 8), *range(10, 18)] and int(8 * cut) - 1 <= len(found) - 8 <= 8 * cut + 1
    assert loader.skipped in (1, 2)
    assert workers or "skipped cut-0.tar: the shard cannot be read to its end" in caplog.text


@pytest.mark.parametrize("at_block", range(1, 12))
def test_cut_between_two_members_is_noticed(tmp_path, make_tar, make_sample, at_block):
    make_tar(tmp_path / "whole.tar", {f"{i}": make_sample(i) for i in range(2)})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[: 512 * at_block])
    with pytest.raises((OSError, tarfile.TarError)):
        list(read_shard(f"{tmp_path}/cut.tar"))


def test_too_many_broken_samples_stop_training(tmp_path, make_tar, make_sample, dataset_config):
    make_tar(tmp_path / "a.tar", {**{f"{i}": make_sample(i) for i in range(9)}, "bad": {"jpg": b"", "txt": "x"}})
    with pytest.raises(ValueError, match=r"a.tar/bad.*max_skipped_fraction 0.05"):
        list(islice(train(dataset_config(f"{tmp_path}/a.tar"), fields=("caption",)), PATIENCE))
    list(islice(train(dataset_config(f"{tmp_path}/a.tar", max_skipped_fraction=0.2)), PATIENCE))


def test_error_of_a_worker_process_is_one_sentence(tmp_path, make_tar, make_sample, dataset_config):
    make_tar(tmp_path / "a.tar", {**{f"{i}": make_sample(i) for i in range(9)}, "bad": {"jpg": b"", "txt": "x"}})
    with pytest.raises(ValueError) as caught:
        list(islice(train(dataset_config(f"{tmp_path}/a.tar", num_workers=2)), 400))
    assert "\n" not in str(caught.value) and "are broken" in str(caught.value)


def test_too_many_broken_samples_spoil_an_evaluation(tmp_path, make_tar, make_sample):
    make_tar(tmp_path / "a.tar", {"a": make_sample(0), "b": {"jpg": b""}, "c": {"jpg": b""}})
    with pytest.raises(ValueError, match="2 of 3 evaluation samples are broken .*max_skipped_fraction 0.05"):
        list(build_eval_loader(f"{tmp_path}/a.tar", CROP, batch_size=4))
    assert len(list(build_eval_loader(f"{tmp_path}/a.tar", CROP, batch_size=4, max_skipped_fraction=0.7))) == 1


def test_shards_that_vanish_end_training_with_a_sentence(tmp_path, make_tar, make_sample, dataset_config):
    make_tar(tmp_path / "a.tar", {"a": make_sample(0)})
    loader = train(dataset_config(f"{tmp_path}/a.tar", max_skipped_fraction=1.0))
    (tmp_path / "a.tar").unlink()
    with pytest.raises(ValueError, match="no longer yield samples"):
        next(iter(loader))


@pytest.mark.parametrize("field, files", [("caption", {"jpg": None}), ("label", {"jpg": None, "txt": "c"}),
                                          ("mask", {"jpg": None, "cls": "1"}), ("image", {"jpg": b"x"}), ("image", {})])
def test_source_without_a_usable_sample_is_an_error_at_start(tmp_path, make_tar, make_image, make_sample,
                                                             dataset_config, field, files):
    files = {name: make_image() if content is None else content for name, content in files.items()}
    make_tar(tmp_path / "bad.tar", {str(i): files for i in range(3)})
    make_tar(tmp_path / "good.tar", {"a": make_sample(1)})
    sources = [{"shards": f"{tmp_path}/good.tar"}, {"shards": f"{tmp_path}/bad.tar"}]
    with pytest.raises(ValueError, match=r"train_shards: no usable sample in .*bad.tar"):
        train(dataset_config(sources), fields=("image", field))
    with pytest.raises(ValueError, match="eval_shards: no usable sample in"):
        build_eval_loader(f"{tmp_path}/bad.tar", CROP, batch_size=2, fields=(field,))


def test_unknown_field_is_refused(shards):
    with pytest.raises(ValueError, match="unknown field 'depth'"):
        build_eval_loader(shards, CROP, batch_size=2, fields=("image", "depth"))


def test_crop_larger_than_the_resized_image_is_refused(shards, dataset_config):
    config = dataset_config(shards)
    config.preprocessing.crop_size = 32
    with pytest.raises(ValueError, match="crop_size 32 must be between 1 and resize_shorter_edge 16"):
        train(config)


def test_image_smaller_than_the_crop_is_enlarged(tmp_path, make_tar, make_image, dataset_config):
    make_tar(tmp_path / "a.tar", {"a": {"jpg": make_image(50, (5, 9))}})
    batch = next(iter(train(dataset_config(f"{tmp_path}/a.tar"), fields=("image",))))
    assert batch["image"].shape == (4, 3, 16, 16) and abs(batch["image"].float().mean() - 50) < 2


def test_pipe_source(tmp_path, make_tar, make_sample, caplog):
    make_tar(tmp_path / "0.tar", {"a": make_sample(5)})
    loader = build_eval_loader(f"pipe:cat {tmp_path}/0.tar", CROP, batch_size=2, fields=("label",))
    assert [(batch["key"], batch["label"].tolist()) for batch in loader] == [(["0.tar/a"], [5])]
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="no usable sample in pipe:cat"):
        build_eval_loader(f"pipe:cat {tmp_path}/absent.tar 2>/dev/null", CROP, batch_size=2)


def test_pipe_may_be_left_early(tmp_path, make_tar, make_sample, caplog, recwarn):
    make_tar(tmp_path / "0.tar", {str(i): {**make_sample(i), "bin": bytes(200_000)} for i in range(20)})
    loader = build_eval_loader(f"pipe:cat {tmp_path}/0.tar", CROP, batch_size=2, fields=("label",), max_images=3)
    assert labels(loader) == [0, 1, 2]
    assert not caplog.records and not recwarn.list


def test_failing_pipe_is_a_broken_shard(tmp_path, make_tar, make_sample, caplog):
    make_tar(tmp_path / "0.tar", {str(i): make_sample(i) for i in range(20)})
    pipe = f"pipe:head -c 30000 {tmp_path}/0.tar; sleep 0.5; exit 3"  # it fails after its first blocks have been read
    loader = build_eval_loader([pipe, f"{tmp_path}/0.tar"], CROP, batch_size=2, fields=("label",),
                               max_skipped_fraction=1.0)
    assert len(labels(loader)) > 20 and "cannot be read to its end" in caplog.text
