"""The annotation files of Kinetics, Something-Something, Diving-48, UCF-101 and HMDB-51."""

from __future__ import annotations

import csv
from pathlib import Path

from aim_adapters.errors import ConfigError
from aim_adapters.video.datasets.annotated import AnnotatedVideos, Entry, read_json, read_pairs, read_records
from aim_adapters.video.datasets.csv_list import read_text


class KineticsList(AnnotatedVideos):
    """Kinetics-400, -600 or -700, by the published CSV files: ``train.csv``, ``val.csv``.

    Columns are ``label,youtube_id,time_start,time_end,split``. Files are ``<youtube_id>_000010_000020.mp4`` or
    ``<youtube_id>.mp4``, in one folder or in one for each class. ``split`` takes only the rows of that split, None all.
    """

    @staticmethod
    def read(annotations: Path, split: str | None) -> tuple[list[Entry], list[str] | None]:
        """Return the videos of a split; the classes are in order of their names."""
        rows = csv.DictReader(read_text(annotations).replace("\0", "").split("\n"), skipinitialspace=True)
        needed = ["youtube_id", "time_start", "time_end", "label", *(["split"] if split is not None else [])]
        if lacking := [name for name in needed if name not in (rows.fieldnames or [])]:
            advice = "; that of a test set has none: take val.csv" if lacking == ["label"] else ""
            there = ", ".join(rows.fieldnames or [])
            raise ConfigError(f"{str(annotations)!r} has no column {', '.join(lacking)}, only {there}{advice}")
        entries, splits = [], set()
        for row in rows:
            try:
                span = f"{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
                label = row["label"].strip()
            except (AttributeError, TypeError, ValueError) as error:  # a row with fewer or other fields
                raise ConfigError(f"{str(annotations)!r}, line {rows.line_num}: cannot read {row}") from error
            splits.add(row.get("split"))
            if split is None or row["split"] == split:
                entries.append(Entry((f"{row['youtube_id']}_{span}", row["youtube_id"]), label))
        if not entries:
            raise ConfigError(
                f"{str(annotations)!r} has no video of split {split!r}, only of {sorted(map(str, splits))}"
            )
        return entries, None


class SomethingSomethingList(AnnotatedVideos):
    """Something-Something v2, by ``labels.json`` and ``train.json`` or ``validation.json``; files are ``<id>.webm``.

    ``annotations`` is their folder, and ``split`` one of ``"train"`` and ``"validation"``; labels of the test set are
    not published. Classes keep the order of ``labels.json``. A flip changes the class of some: `mirrored_classes`.
    """

    splits = ("train", "validation")

    @staticmethod
    def read(annotations: Path, split: str | None) -> tuple[list[Entry], list[str] | None]:
        """Return the videos of a split, and the classes in the order of ``labels.json``."""
        file = _one_of(annotations, f"{split}.json", f"something-something-v2-{split}.json")
        indices = read_json(_one_of(annotations, "labels.json", "something-something-v2-labels.json"))
        if not isinstance(indices, dict) or not all(str(index).isdecimal() for index in indices.values()):
            raise ConfigError(f"{str(annotations / 'labels.json')!r} does not map names of classes to their indices")
        entries = []
        for record in read_records(file, ("id", "template")):
            label = str(record["template"]).replace("[", "").replace("]", "")
            entries.append(Entry((str(record["id"]),), label))
        return entries, sorted(indices, key=lambda name: int(indices[name]))


class Diving48List(AnnotatedVideos):
    """Diving-48, by ``Diving48_V2_train.json`` or ``Diving48_V2_test.json`` and ``Diving48_vocab.json``.

    ``annotations`` is their folder, and ``split`` one of ``"train"`` and ``"test"``; if there are no files of V2, those
    of V1 are read. A class is named by its four parts: ``"Back 15som 05Twis FREE"``.
    """

    splits = ("train", "test")

    @staticmethod
    def read(annotations: Path, split: str | None) -> tuple[list[Entry], list[str] | None]:
        """Return the videos of a split, and the classes in the order of the vocabulary."""
        vocabulary = annotations / "Diving48_vocab.json"
        classes = read_json(vocabulary)
        if not isinstance(classes, list) or not all(isinstance(parts, list) for parts in classes):
            raise ConfigError(f"{str(vocabulary)!r} is no list of the parts of each class")
        names = [" ".join(map(str, parts)) for parts in classes]
        file = _one_of(annotations, f"Diving48_V2_{split}.json", f"Diving48_{split}.json")
        entries = []
        for record in read_records(file, ("vid_name", "label")):
            label = record["label"]
            if not isinstance(label, int) or not 0 <= label < len(names):
                raise ConfigError(
                    f"{str(file)!r}: {record['vid_name']} has label {label!r}, but the {len(names)} classes of "
                    f"{vocabulary.name} are 0 to {len(names) - 1}"
                )
            entries.append(Entry((str(record["vid_name"]),), names[label]))
        return entries, names


class UCF101List(AnnotatedVideos):
    """UCF-101, by ``classInd.txt`` and ``trainlist01.txt`` or ``testlist01.txt``.

    ``annotations`` is their folder (``ucfTrainTestlist``), and ``split`` one of ``"train1"`` to ``"test3"``.
    """

    splits = tuple(f"{part}{number}" for part in ("train", "test") for number in (1, 2, 3))

    @staticmethod
    def read(annotations: Path, split: str | None) -> tuple[list[Entry], list[str] | None]:
        """Return the videos of a split, and the classes in the order of ``classInd.txt``."""
        pairs = read_pairs(annotations / "classInd.txt", "'1 ApplyEyeMakeup'")
        file = annotations / f"{split[:-1]}list0{split[-1]}.txt" if split else annotations
        entries = []
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if line.strip():
                folder, _, name = line.split()[0].rpartition("/")
                if not folder:
                    raise ConfigError(f"{str(file)!r}, line {number}: expected '<class>/<file>', got {line!r}")
                entries.append(Entry((f"{folder}/{Path(name).stem}", Path(name).stem), folder))
        return entries, [name for _, name in pairs]


class HMDB51List(AnnotatedVideos):
    """HMDB-51, by the files ``<class>_test_split1.txt``.

    ``annotations`` is their folder (``testTrainMulti_7030_splits``), and ``split`` one of ``"train1"`` to ``"test3"``.
    Videos that these files mark as unused (0) are not taken.
    """

    splits = tuple(f"{part}{number}" for part in ("train", "test") for number in (1, 2, 3))

    @staticmethod
    def read(annotations: Path, split: str | None) -> tuple[list[Entry], list[str] | None]:
        """Return the videos of a split, and the classes in order of their names."""
        split = split or ""
        ending = f"_test_split{split[-1:]}.txt"
        files = sorted(annotations.glob(f"*{ending}"))
        if not files:
            raise ConfigError(f"{str(annotations)!r} holds no file <class>{ending}")
        wanted = "1" if split.startswith("train") else "2"
        entries = []
        for file in files:
            label = file.name.removesuffix(ending)
            for name, use in read_pairs(file, "'<file> <0, 1 or 2>'"):
                if use not in ("0", "1", "2"):
                    raise ConfigError(f"{str(file)!r}: {name} is marked {use!r}, expected 1 (train), 2 (test) or 0")
                if use == wanted:
                    entries.append(Entry((f"{label}/{Path(name).stem}", Path(name).stem), label))
        return entries, [file.name.removesuffix(ending) for file in files]


def _one_of(folder: Path, *names: str) -> Path:
    """Return the first file that there is, or the first name."""
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
