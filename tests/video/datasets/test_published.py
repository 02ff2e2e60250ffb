"""Annotation files as published: a few lines of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aim_adapters.errors import ConfigError
from aim_adapters.video import (
    Diving48List,
    HMDB51List,
    KineticsList,
    SomethingSomethingList,
    UCF101List,
    VideoDataset,
    mirrored_classes,
)
from tests.video.datasets.cases import fake


def names(dataset: VideoDataset) -> list[tuple[str, str]]:
    return [(sample.name, dataset.labels[sample.label]) for sample in dataset.samples]


def test_kinetics(tmp_path: Path) -> None:
    root = fake(tmp_path / "k400", "part_1/--0edUL8zmA_000092_000102.mp4", "air drumming/abc.mkv")
    file = tmp_path / "train.csv"
    file.write_text(
        "label,youtube_id,time_start,time_end,split\n"
        "dancing macarena,--0edUL8zmA,92,102,train\n"
        "air drumming,abc,5,15,train\n"
        '"cooking, slowly",gone,0,10,val\n'
    )
    with pytest.warns(UserWarning, match="1 of 3 videos are missing.*gone_000000_000010"):
        dataset = KineticsList(root, file, 8)
    assert dataset.labels == ("air drumming", "cooking, slowly", "dancing macarena")
    assert names(dataset) == [
        ("part_1/--0edUL8zmA_000092_000102.mp4", "dancing macarena"),
        ("air drumming/abc.mkv", "air drumming"),
    ]
    assert [(record.name, record.counts) for record in dataset.skipped] == [("gone_000000_000010", True)]
    train = KineticsList(root, file, 8, split="train", labels=["dancing macarena", "air drumming"])
    assert [sample.label for sample in train.samples] == [0, 1] and not train.skipped
    with pytest.raises(ConfigError, match=r"no video of split 'test', only of \['train', 'val'\]"):
        KineticsList(root, file, 8, split="test")
    file.write_text("youtube_id,time_start,time_end,split\nabc,5,15,test\n")
    with pytest.raises(ConfigError, match=r"no column label, .*take val\.csv"):
        KineticsList(root, file, 8)
    file.write_text("label,youtube_id,time_start,time_end,split\nair drumming,abc,5\n")
    with pytest.raises(ConfigError, match="line 2: cannot read"):
        KineticsList(root, file, 8)


CLASSES = [
    "Holding something next to something",
    "Pulling something from left to right",
    "Pulling something from right to left",
    "Turning the camera left while filming something",
    "Turning the camera right while filming something",
]


def something(folder: Path, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_something_something(tmp_path: Path) -> None:
    root = fake(tmp_path / "videos", "20bn-something-something-v2/78687.webm", "20bn-something-something-v2/42.webm")
    train = [
        {
            "id": "78687",
            "label": "holding potato next to vicks vaporub bottle",
            "template": "Holding [something] next to [something]",
            "placeholders": ["potato", "vicks vaporub bottle"],
        },
        {"id": "42", "label": "…", "template": "Pulling [something] from right to left", "placeholders": []},
    ]
    order = [3, 0, 4, 1, 2]
    labels = {name: str(index) for name, index in zip(CLASSES, order, strict=True)}
    folder = something(tmp_path / "labels", labels=labels, train=train, test=[{"id": "1420"}])
    dataset = SomethingSomethingList(root, folder, 8, split="train")
    assert [dataset.labels.index(name) for name in CLASSES] == order
    assert [name for _, name in names(dataset)] == [CLASSES[0], CLASSES[2]]
    assert mirrored_classes(dataset.labels) == {0: 4, 4: 0, 1: 2, 2: 1}
    for split in ("test", None):
        with pytest.raises(ConfigError, match="split must be one of 'train', 'validation'"):
            SomethingSomethingList(root, folder, 8, split=split)
    with pytest.raises(ConfigError, match=r"validation\.json' cannot be read"):
        SomethingSomethingList(root, folder, 8, split="validation")
    something(folder, validation=[{"id": "42"}])
    with pytest.raises(ConfigError, match=r"validation\.json', item 0: no template"):
        SomethingSomethingList(root, folder, 8, split="validation")
    something(folder, validation=[{"id": "42", "template": "Eating [something]"}])
    with pytest.raises(ConfigError, match="'Eating something' is not among the 5 labels"):
        SomethingSomethingList(root, folder, 8, split="validation")


def test_diving(tmp_path: Path) -> None:
    root = fake(tmp_path / "rgb", "HrcVLw6XFBc_00000.mp4", "_8Vy3dlHg2w_00001.mp4")
    folder = something(
        tmp_path / "annotations",
        Diving48_vocab=[["Back", "15som", "05Twis", "FREE"], ["Forward", "Dive", "NoTwis", "PIKE"]],
        Diving48_V2_train=[
            {"vid_name": "HrcVLw6XFBc_00000", "label": 1, "start_frame": 0, "end_frame": 122},
            {"vid_name": "_8Vy3dlHg2w_00001", "label": 0, "start_frame": 0, "end_frame": 100},
        ],
        Diving48_V2_test=[{"vid_name": "_8Vy3dlHg2w_00001", "label": 2}],
    )
    dataset = Diving48List(root, folder, 32, split="train")
    assert dataset.labels == ("Back 15som 05Twis FREE", "Forward Dive NoTwis PIKE")
    assert [(sample.name, sample.label) for sample in dataset.samples] == [
        ("HrcVLw6XFBc_00000.mp4", 1),
        ("_8Vy3dlHg2w_00001.mp4", 0),
    ]
    with pytest.raises(ConfigError, match=r"_8Vy3dlHg2w_00001 has label 2, but the 2 classes .* are 0 to 1"):
        Diving48List(root, folder, 32, split="test")


def test_ucf(tmp_path: Path) -> None:
    root = fake(tmp_path / "UCF-101", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "Archery/v_Archery_g01_c01.avi")
    folder = tmp_path / "ucfTrainTestlist"
    folder.mkdir()
    (folder / "classInd.txt").write_bytes(b"1 ApplyEyeMakeup\r\n2 Archery\r\n")
    (folder / "trainlist01.txt").write_bytes(b"ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n")
    (folder / "testlist02.txt").write_bytes(b"Archery/v_Archery_g01_c01.avi\r\n")
    train = UCF101List(root, folder, 8, split="train1")
    assert names(train) == [("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "ApplyEyeMakeup")]
    test = UCF101List(root, folder, 8, split="test2")
    assert test.labels == train.labels == ("ApplyEyeMakeup", "Archery") and test.samples[0].label == 1
    with pytest.raises(ConfigError, match=r"testlist01\.txt' cannot be read"):
        UCF101List(root, folder, 8, split="test1")
    with pytest.raises(ConfigError, match="split must be one of 'train1'"):
        UCF101List(root, folder, 8, split="train")


def test_hmdb(tmp_path: Path) -> None:
    files = ("April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "b.avi", "c.avi")
    root = fake(tmp_path / "hmdb51", *(f"brush_hair/{file}" for file in files), "cartwheel/b.avi")
    folder = tmp_path / "testTrainMulti_7030_splits"
    folder.mkdir()
    (folder / "brush_hair_test_split1.txt").write_text(f"{files[0]} 1 \nb.avi 2 \nc.avi 0 \n")
    (folder / "cartwheel_test_split1.txt").write_text("b.avi 1 \n")
    assert names(HMDB51List(root, folder, 8, split="train1")) == [
        (f"brush_hair/{files[0]}", "brush_hair"),
        ("cartwheel/b.avi", "cartwheel"),
    ]
    assert names(HMDB51List(root, folder, 8, split="test1")) == [("brush_hair/b.avi", "brush_hair")]
    with pytest.raises(ConfigError, match=r"holds no file <class>_test_split2\.txt"):
        HMDB51List(root, folder, 8, split="test2")
    (folder / "cartwheel_test_split1.txt").write_text("b.avi 7\n")
    with pytest.raises(ConfigError, match=r"cartwheel_test_split1\.txt': b\.avi is marked '7'"):
        HMDB51List(root, folder, 8, split="train1")
