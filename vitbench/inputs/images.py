"""Photographs and videos as batches for a model: found, sampled, decoded ahead of the model, prepared by its own data config.

Files that cannot be read cost nobody a run: they are skipped, with a reason. A tar is read in place, never unpacked.
"""

from __future__ import annotations

import hashlib
import heapq
import importlib
import io
import os
import stat
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import timm.data
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from vitbench.errors import BadInput, NotSupported, one_line
from vitbench.inputs import videos
from vitbench.inputs.videos import Unreadable
from vitbench.units import size as size_text

# Of one side to the other; beyond, the shorter side enlarged to a model's would make an image of any size.
_LONGEST = 100
# A tar's member is read into memory whole; what is larger holds no photograph.
_LARGEST_MEMBER = 2**30
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
# What timm.data.create_dataset reads, and the package that it needs for it.
_DATASETS = {
    "torch": "torchvision",
    "hfds": "datasets",
    "hfids": "datasets",
    "tfds": "tensorflow_datasets",
    "wds": "webdataset",
}

Raw = Path | bytes | Image.Image | Unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What a picture goes through before a model sees it.

    Attributes:
        input_shape: C, H, W of a picture, or C, T, H, W of a clip.
        text: all of it in words.
        mean: of each channel of values from 0 to 1; it is subtracted.
        std: of each channel; what is left is divided by it.
        frame_stride: of a clip: frames of the video from one of the clip to the next; None spreads them over the whole video.
        crop: an RGB picture, resized and cropped: (C, H, W), uint8.
    """

    input_shape: tuple[int, ...]
    text: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    frame_stride: int | None = None
    crop: Callable[[Image.Image], Tensor]

    @property
    def frames(self) -> int | None:
        """T; None where the model takes pictures."""
        return self.input_shape[1] if len(self.input_shape) == 4 else None

    def transform(self, image: Image.Image) -> Tensor:
        """Gives a picture of any mode as the model takes it, or one frame of a clip: (C, H, W), float32."""
        return self._normalised(self.crop(as_rgb(image)), channels=0)

    def batch(self, pixels: Tensor, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """Gives what goes into the model, (B, *input_shape), from cropped pixels of that shape, uint8."""
        return self._normalised(pixels.to(device), channels=1).to(dtype)

    def as_picture(self, tensor: Tensor) -> npt.NDArray[np.uint8]:
        """Gives the cropped pixels of what went into the model.

        Args:
            tensor: (C, H, W), (C, T, H, W), or a batch of them. Types of 16 bits have lost the last bits of the colours.

        Returns:
            The same with the channels last: (H, W, C), (T, H, W, C), or a batch of them.
        """
        last = tensor.detach().to("cpu", torch.float32).movedim(-len(self.input_shape), -1)
        pixels = (last * torch.tensor(self.std) + torch.tensor(self.mean)) * 255
        found: npt.NDArray[np.uint8] = pixels.round().clamp(0, 255).to(torch.uint8).numpy()
        return found

    def _normalised(self, pixels: Tensor, channels: int) -> Tensor:
        # The operations of timm's transform in their order, so that the result is the same to the last bit.
        shape = [-1 if axis == channels else 1 for axis in range(pixels.dim())]
        mean, std = (torch.tensor(values, device=pixels.device).view(shape) for values in (self.mean, self.std))
        return pixels.float().div_(255).sub_(mean).div_(std)


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of a model, (B, *input_shape), and what each was made from."""

    tensor: Tensor
    names: tuple[str, ...]


def preprocessing(model: nn.Module, input_shape: Sequence[int], *, frame_stride: int | None = None) -> Preprocessing:
    """Gives the preprocessing that a model's data config states, for its real input.

    The crop is the config's: `center` resizes so that the shorter side, relative to the input's, fits, and keeps the aspect also
    where H and W differ; `squash` does not keep it; `border` pads. A model without a config gets what ImageNet's models have.

    Args:
        model: of timm, or any other.
        input_shape: C, H, W, or C, T, H, W for a model of clips.
        frame_stride: for a model of clips, frames of the video from one of the clip to the next, as its paper has it; None if
            it is not known.

    Raises:
        NotSupported: the model does not take three channels.
    """
    channels, *frames, height, width = input_shape
    if channels != 3:
        raise NotSupported(f"The model takes {channels} channel(s), and photographs have three: red, green and blue.")
    stated = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    if not isinstance(stated, Mapping):
        stated = stated.to_dict()
    config = timm.data.resolve_model_data_config(
        model, args={"input_size": (channels, height, width)}, pretrained_cfg=stated
    )
    mean, std = (tuple(float(value) for value in config[name]) for name in ("mean", "std"))
    parts = [
        *([_sampling_text(frames[0], frame_stride)] if frames else []),
        _crop_text(config),
        *(f"{name} {' '.join(f'{one:g}' for one in values)}" for name, values in (("mean", mean), ("std", std))),
    ]
    if not stated.get("mean"):
        parts[-1] += " (ImageNet's: the model states none)"
    return Preprocessing(
        input_shape=tuple(input_shape),
        text=", ".join(parts),
        mean=mean,
        std=std,
        frame_stride=frame_stride,
        crop=timm.data.create_transform(**config, is_training=False, normalize=False),
    )


def _sampling_text(frames: int, stride: int | None) -> str:
    if stride is None:
        return f"{frames} frames spread evenly over the video"
    return f"{frames} frames at stride {stride} from the middle of the video (its last repeated if it is shorter)"


def _crop_text(config: Mapping[str, Any]) -> str:
    """Says what timm's transform of such a config does."""
    crop = config["input_size"][-2:]
    resized = tuple(int(extent / config["crop_pct"]) for extent in crop)
    by = config["interpolation"]
    if config["crop_mode"] == "squash":
        how = f"squash to {size_text(resized)} {by}"
    elif config["crop_mode"] == "border":
        how = f"fit into {size_text(resized)} {by}, pad with the mean"
    elif resized[0] == resized[1]:
        how = f"resize {resized[0]} {by}"
    else:
        how = f"resize to cover {size_text(resized)} {by}"
    return f"{how}, centre crop {size_text(crop)}"


def as_rgb(image: Image.Image) -> Image.Image:
    """Gives a picture of any mode in RGB, turned as its EXIF data say, on white where it is transparent.

    Grey values of 16 bits lose the lower ones. Whole numbers beyond 16 bits and fractions have no agreed white: their own
    smallest and largest become black and white.

    Raises:
        Unreadable: it is too large, or too long and thin, or not of numbers.
        Exception: whatever Pillow's decoders raise.
    """
    longer, shorter = max(image.size), min(image.size)
    if Image.MAX_IMAGE_PIXELS is not None and longer * shorter > Image.MAX_IMAGE_PIXELS:
        raise Unreadable(
            f"{longer * shorter:,} pixels, more than Pillow's limit of {Image.MAX_IMAGE_PIXELS:,}: perhaps a decompression bomb"
        )
    if shorter == 0 or longer > _LONGEST * shorter:
        raise Unreadable(f"too long and thin: {size_text(image.size)} pixels")
    image.load()
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_grey(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:
        # Only what the EXIF data say is damaged, and the picture itself has been decoded.
        return image


def _grey(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Unreadable("some of its values are not numbers")
    if values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        low, high = 0, 65535
    scaled = (values.astype(np.float64) - low) / max(float(high) - float(low), np.finfo(np.float64).tiny)
    grey: npt.NDArray[np.uint8] = np.round(scaled * 255).astype(np.uint8)
    return grey


def _image(raw: Raw) -> Image.Image:
    """Gives what a file or bytes hold, in RGB.

    Raises:
        Unreadable: they hold no picture.
    """
    if isinstance(raw, Unreadable):
        raise raw
    try:
        if isinstance(raw, Image.Image):
            return as_rgb(raw)
        _check_file(raw)
        with Image.open(raw if isinstance(raw, Path) else io.BytesIO(raw)) as image:
            return as_rgb(image)
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("not an image that Pillow can read") from error
    except MemoryError:
        raise  # of this machine, not of the file
    except Exception as error:
        # A decoder on a damaged file raises nearly anything.
        raise Unreadable(_reason(error)) from error


def _check_file(raw: Path | bytes) -> None:
    """Refuses what would be opened in vain, or, a pipe, never."""
    if isinstance(raw, Path):
        found = raw.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable("not a regular file")
    if (found.st_size if isinstance(raw, Path) else len(raw)) == 0:
        raise Unreadable("an empty file")


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or one_line(error).partition(": ")[2]
    return text.rstrip(".") or type(error).__name__


@dataclass(frozen=True, slots=True)
class _Place:
    """Somewhere with pictures or videos.

    Attributes:
        label: as the user names it.
        names: of what is there, in order; one empty name if the place is a file itself.
        read: gives what is at these numbers of `names`, in their order; the file, archive or data set is open meanwhile.
        missed: what cannot even be listed, with the reason.
    """

    label: str
    names: Sequence[str]
    read: Callable[[Sequence[int]], Iterator[Raw]]
    missed: Sequence[tuple[str, str]] = ()

    def name(self, number: int) -> str:
        """Gives the name by which a user finds it; names that are not UTF-8 get marks in place of what is not."""
        name = f"{self.label.rstrip('/')}/{self.names[number]}" if self.names[number] else self.label
        return os.fsencode(name).decode("utf-8", "replace")

    def key(self, number: int) -> str:
        """Gives what a sample goes by: no matter where the place is."""
        return self.names[number] or Path(self.label).name


class Images:
    """Pictures or clips that were found and sampled, as batches for a model.

    Attributes:
        source: where they come from, as it was given.
        preprocessing: what they go through.
        skipped: name and reason of each that could not be read, in the last or present pass.
        padded: names of the videos that are shorter than the clip, in which their last frame stands for those after it.
    """

    def __init__(
        self,
        source: str,
        preprocessing: Preprocessing,
        chosen: Sequence[tuple[_Place, Sequence[int]]],
        decode: Callable[[Raw], tuple[Tensor, bool]],
    ) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self.skipped: list[tuple[str, str]] = [missed for place, _ in chosen for missed in place.missed]
        self.padded: list[str] = []
        self._chosen = chosen
        self._decode = decode

    def __len__(self) -> int:
        """How many will be tried."""
        return sum(len(numbers) for _, numbers in self._chosen)

    def batches(
        self, batch_size: int, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Generator[Batch]:
        """Gives the inputs in batches, the last of which may be smaller; threads decode the next batch while one is used.

        Closing the generator ends the threads. A second call begins again.

        Raises:
            BadInput: none can be read; the text names the first few.
        """
        if batch_size < 1:
            raise BadInput(f"The batch size must be 1 or more, not {batch_size}.")
        self.skipped = [missed for place, _ in self._chosen for missed in place.missed]
        self.padded = []
        readable = False
        pixels: list[Tensor] = []
        names: list[str] = []
        with closing(self._decoded(ahead=2 * batch_size)) as decoded:
            for name, tensor in decoded:
                pixels.append(tensor)
                names.append(name)
                readable = True
                if len(pixels) == batch_size:
                    yield Batch(self.preprocessing.batch(torch.stack(pixels), device, dtype), tuple(names))
                    pixels, names = [], []
        if pixels:
            yield Batch(self.preprocessing.batch(torch.stack(pixels), device, dtype), tuple(names))
        if not readable:
            some = "; ".join(f"{name} ({reason})" for name, reason in self.skipped[:3])
            more = f"; and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
            raise BadInput(f"Nothing of {self.source} can be read: {some}{more}.")

    def _decoded(self, ahead: int) -> Generator[tuple[str, Tensor]]:
        """Gives what can be read, in order; up to so many are being decoded or wait."""
        raws = self._raws()
        waiting: deque[tuple[str, Future[tuple[Tensor, bool]]]] = deque()
        pool = ThreadPoolExecutor(_threads(), thread_name_prefix="vitbench-images")
        try:
            while True:
                for name, raw in islice(raws, ahead - len(waiting)):
                    waiting.append((name, pool.submit(self._decode, raw)))
                if not waiting:
                    return
                name, future = waiting.popleft()
                try:
                    tensor, padded = future.result()
                except Unreadable as error:
                    self.skipped.append((name, str(error)))
                    continue
                if padded:
                    self.padded.append(name)
                yield name, tensor
        finally:
            pool.shutdown(cancel_futures=True)
            raws.close()

    def _raws(self) -> Generator[tuple[str, Raw]]:
        for place, numbers in self._chosen:
            for number, raw in zip(numbers, place.read(numbers), strict=False):
                yield place.name(number), raw


def open_images(
    paths: str | Path | Sequence[str | Path],
    preprocessing: Preprocessing,
    *,
    limit: int | None = 128,
    seed: int = 0,
    root: str | Path | None = None,
    split: str = "validation",
    download: bool = False,
) -> Images:
    """Finds pictures, and gives them as batches for a model of pictures.

    Args:
        paths: each a folder, searched with its folders for what Pillow reads, except in what is hidden; a file; a tar, also a
            compressed one; or a data set of timm.data.create_dataset, such as `torch/cifar10`.
        preprocessing: of the model.
        limit: if there are more, a sample of so many: the same for the same names, wherever they are and in whatever order;
            None takes all. Of a data set that can only be read in its order, the first are taken. What is sampled comes in the
            order of its names, and places in the order given.
        seed: of the sample.
        root: where data sets are; without it, the current folder.
        split: of data sets.
        download: let a data set be downloaded, which it is not otherwise.

    Raises:
        BadInput: there is no such path or data set, nothing in it, or an archive is damaged; or the model takes clips.
        NotSupported: a data set needs a package that is not installed.
    """
    if preprocessing.frames is not None:
        raise BadInput("The model takes clips, not images: give --video with a video file or a folder of them.")
    Image.init()
    readable = frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)

    def find(given: str) -> _Place:
        kind = _kind(given)
        if kind == "folder":
            return _folder(given, readable, "image", "Pillow")
        if kind == "file":
            return _tar(given, readable) if given.lower().endswith(_TARS) else _file(given)
        prefix, slash, _ = given.partition("/")
        if root is not None or (slash and prefix.lower() in _DATASETS):
            return _dataset(given, root, split, download, limit)
        raise BadInput(
            f"There is no {given}; give a folder, image files, a tar, or a data set of timm such as torch/cifar10."
        )

    def decode(raw: Raw) -> tuple[Tensor, bool]:
        return preprocessing.crop(_image(raw)), False

    return _opened(paths, find, decode, preprocessing, limit, seed)


def open_videos(
    paths: str | Path | Sequence[str | Path],
    preprocessing: Preprocessing,
    *,
    limit: int | None = 128,
    seed: int = 0,
) -> Images:
    """Finds videos, and gives one clip of each as batches for a model of clips.

    Args:
        paths: each a video file, or a folder, searched with its folders, except in what is hidden.
        preprocessing: of the model; it says which frames are taken.
        limit: as `open_images` has it.
        seed: of the sample.

    Raises:
        BadInput: there is no such path, or nothing in it; or the model takes pictures.
        NotSupported: PyAV is not installed.
    """
    frames = preprocessing.frames
    if frames is None:
        raise BadInput("The model takes images, not clips: give --images with a folder of them.")
    videos.pyav()

    def find(given: str) -> _Place:
        kind = _kind(given)
        if kind == "folder":
            return _folder(given, videos.EXTENSIONS, "video", "PyAV")
        if kind == "file":
            return _file(given)
        raise BadInput(f"There is no {given}; give a video file or a folder of them.")

    def decode(raw: Raw) -> tuple[Tensor, bool]:
        if not isinstance(raw, Path):
            raise Unreadable("not a file")
        try:
            _check_file(raw)
        except OSError as error:
            raise Unreadable(_reason(error)) from error
        pictures, padded = videos.read(raw, frames, preprocessing.frame_stride, preprocessing.crop)
        return torch.stack(pictures, dim=1), padded

    return _opened(paths, find, decode, preprocessing, limit, seed)


def _opened(
    paths: str | Path | Sequence[str | Path],
    find: Callable[[str], _Place],
    decode: Callable[[Raw], tuple[Tensor, bool]],
    preprocessing: Preprocessing,
    limit: int | None,
    seed: int,
) -> Images:
    given = [str(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not given:
        raise BadInput("There is nothing to look at: give a folder or files.")
    if limit is not None and limit < 1:
        raise BadInput(f"The limit must be 1 or more, not {limit}; leave it out for all.")
    places = [find(path) for path in dict.fromkeys(given)]
    return Images(" ".join(given), preprocessing, _sample(places, limit, seed), decode)


def _sample(places: Sequence[_Place], limit: int | None, seed: int) -> list[tuple[_Place, list[int]]]:
    """Takes those whose names have the smallest hashes: more files, or another order, exchange few of them or none."""
    if limit is None or sum(len(place.names) for place in places) <= limit:
        return [(place, list(range(len(place.names)))) for place in places]
    earlier: Counter[str] = Counter()
    ranked: list[tuple[bytes, int, int]] = []
    for which, place in enumerate(places):
        for number in range(len(place.names)):
            key = place.key(number)
            text = f"{seed}/{earlier[key]}/{key}"
            ranked.append((hashlib.blake2b(os.fsencode(text), digest_size=16).digest(), which, number))
            earlier[key] += 1
    taken = heapq.nsmallest(limit, ranked)
    return [(place, sorted(number for _, at, number in taken if at == which)) for which, place in enumerate(places)]


def _kind(given: str) -> Literal["folder", "file", "nothing"]:
    try:
        mode = Path(given).stat().st_mode
    except (OSError, ValueError):  # too long a name, or one that no file can have
        return "nothing"
    return "folder" if stat.S_ISDIR(mode) else "file"


def _folder(given: str, endings: frozenset[str], what: str, reader: str) -> _Place:
    names: list[str] = []
    missed: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()
    root = Path(given)
    for folder, folders, files in os.walk(
        root, followlinks=True, onerror=lambda error: missed.append((str(error.filename), _reason(error)))
    ):
        found = Path(folder).stat()
        # A link to a folder that is above it, or that another link leads to.
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(folder).relative_to(root).as_posix()
        names += [
            name if below == "." else f"{below}/{name}"
            for name in files
            if not name.startswith(".") and PurePath(name).suffix.lower() in endings
        ]
    if not names:
        unread = f"; {missed[0][0]} cannot be looked into ({missed[0][1]})" if missed else ""
        raise BadInput(f"There is no {what} in {given} that {reader} reads{unread}; give another folder.")
    names.sort()

    def read(numbers: Sequence[int]) -> Iterator[Raw]:
        return (root / names[number] for number in numbers)

    return _Place(given, names, read, missed)


def _file(given: str) -> _Place:
    return _Place(given, [""], lambda numbers: (Path(given) for _ in numbers))


def _tar(given: str, endings: frozenset[str]) -> _Place:
    try:
        with tarfile.open(given) as tar:
            # Of members with one name, the last counts, as in unpacking.
            found = {member.name.removeprefix("./"): member for member in tar.getmembers() if not member.isdir()}
            _check_end(tar)
            # A compressed archive goes back to its beginning for whatever it has passed.
            compressed = not isinstance(tar.fileobj, io.BufferedReader)
    except Exception as error:
        raise BadInput(f"{given} is not a whole tar archive ({one_line(error).rstrip('.')}).") from error
    names = sorted(name for name in found if PurePath(name).suffix.lower() in endings)
    if not names:
        raise BadInput(f"There is no image in {given} that Pillow reads; give another archive.")

    def read(numbers: Sequence[int]) -> Iterator[Raw]:
        members = [found[names[number]] for number in numbers]
        order = sorted(members, key=lambda member: member.offset_data) if compressed else members
        with tarfile.open(given) as tar:
            coming = iter(order)
            held: dict[int, Raw] = {}
            for member in members:
                while member.offset not in held:
                    one = next(coming)
                    held[one.offset] = _content(tar, one)
                yield held.pop(member.offset)

    return _Place(given, names, read)


def _check_end(tar: tarfile.TarFile) -> None:
    """Refuses an archive that goes on after what tarfile takes for its end: a damaged header ends it without an error."""
    if tar.fileobj is not None:
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("a header within it is damaged")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | Unreadable:
    if not member.isreg():
        return Unreadable("a link, not a file")
    if member.size > _LARGEST_MEMBER:
        return Unreadable(f"too large: {member.size:,} bytes")
    try:
        file = tar.extractfile(member)
        return file.read() if file is not None else Unreadable("not a file")
    except Exception as error:
        return Unreadable(_reason(error))


def _dataset(given: str, root: str | Path | None, split: str, download: bool, limit: int | None) -> _Place:
    kind = given.partition("/")[0].lower() if "/" in given else ""
    package = _DATASETS.get(kind, "timm")
    where = Path(root or ".").absolute()
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise NotSupported(f"{given} needs the package {package}: pip install {package.replace('_', '-')}.") from error
    if kind == "hfids" and not download:
        raise BadInput(
            f"{given} is read over the network, which counts as a download and was not asked for; take hfds."
        )
    try:
        with _offline(package, offline=not download):
            dataset = timm.data.create_dataset(
                given,
                root=str(where),
                split=split,
                download=download,
                num_samples=limit if kind in ("hfids", "wds") else None,
            )
            total = len(dataset)
    except Exception as error:
        unasked = "" if download else " Nothing is downloaded unless that is asked for."
        raise BadInput(f"{given} is not in {where}, or has no split {split} ({one_line(error)}).{unasked}") from error
    if not total:
        raise BadInput(f"{given} in {where} is empty; take another split than {split}.")
    sequential = isinstance(dataset, torch.utils.data.IterableDataset)
    if sequential and limit is not None:
        total = min(total, limit)

    def read(numbers: Sequence[int]) -> Iterator[Raw]:
        if sequential:
            wanted = set(numbers)
            for number, (image, *_) in enumerate(islice(dataset, max(wanted, default=-1) + 1)):
                if number in wanted:
                    yield image
            return
        for number in numbers:
            yield _sampled(dataset, number)

    return _Place(given, [str(number) for number in range(total)], read)


def _sampled(dataset: Any, number: int) -> Raw:
    """Gives one picture of a data set; timm's own class would take the next in silence where one cannot be decoded."""
    try:
        if isinstance(dataset, timm.data.ImageDataset):
            reader = dataset.reader
            if hasattr(reader, "image_key"):  # of Hugging Face, which gives nothing without a label
                item = reader.dataset[number][reader.image_key]
                return bytes(item["bytes"]) if item["bytes"] else Path(item["path"])
            stream, *_ = reader[number]
            with stream:
                return bytes(stream.read())
        image = dataset[number][0]
    except Exception as error:
        return Unreadable(_reason(error))
    return image if isinstance(image, Image.Image) else Unreadable(f"a {type(image).__name__}, not a picture")


@contextmanager
def _offline(package: str, *, offline: bool) -> Iterator[None]:
    """Keeps Hugging Face's data sets to what is in their cache: they look on the hub whatever timm is told."""
    modules = ("huggingface_hub.constants", "datasets.config") if offline and package == "datasets" else ()
    were = [(module, module.HF_HUB_OFFLINE) for module in map(importlib.import_module, modules)]
    try:
        for module, _ in were:
            module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]  # they read it at each call
        yield
    finally:
        for module, was in were:
            module.HF_HUB_OFFLINE = was  # type: ignore[attr-defined]  # as above


def _threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)
