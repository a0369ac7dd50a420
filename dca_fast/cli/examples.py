"""What the help of each command shows."""

__all__ = ["EXAMPLES"]

# Lines of shell, which a test runs or at least parses.
EXAMPLES = {
    "": (
        "dca-fast encode photo.jpg",
        "dca-fast decode photo.dca back.png",
        "dca-fast help encode",
    ),
    "encode": (
        "dca-fast encode photo.jpg",
        "dca-fast encode photo.jpg small.dca -q 30 --effort 6",
        "dca-fast encode photo.jpg --bpp 0.5 --verify",
        "dca-fast encode photo.jpg --lossless",
        "dca-fast encode photos -o archive --manifest archive.jsonl",
        "dca-fast encode photos -o archive --manifest archive.jsonl --no-overwrite",
        "dca-fast encode photos -o archive --shard 1/4",
        "cat photo.jpg | dca-fast encode - - > small.dca",
    ),
    "decode": (
        "dca-fast decode photo.dca",
        "dca-fast decode photo.dca back.webp",
        "dca-fast decode photo.dca --format tif",
        "dca-fast decode photo.dca part.png --region 16,8,64,48",
        "dca-fast decode photo.dca small.png --reduce 8",
        "dca-fast decode archive -o pictures --format jpg",
        "cat photo.dca | dca-fast decode - - --format ppm > back.ppm",
    ),
    "verify": (
        "dca-fast verify archive",
        "dca-fast verify --manifest archive.jsonl --quick",
    ),
    "info": ("dca-fast info photo.dca", "dca-fast info photo.dca --json", "dca-fast info --preset dca-s"),
    "compare": ("dca-fast compare photo.jpg", "dca-fast compare photo.jpg -q 30 -o beside.html"),
    "eval": (
        "dca-fast eval photos --qualities 20,60 --json results.json",
        "dca-fast eval photos --peers jpeg,webp,avif --plot curves.svg",
    ),
    "train": (
        "dca-fast train --data photos --out runs/s --minutes 90",
        "dca-fast train --out runs/s --plot losses.png",
    ),
    "ablate": ("dca-fast ablate --data photos --start checkpoints/dca-s.safetensors --out runs/ablation",),
    "export": ("dca-fast export runs/s/checkpoint.pt own.safetensors --data photos",),
    "package": ("dca-fast package own.safetensors -o dist",),
    "demo": ("dca-fast demo", "dca-fast demo photo.jpg --out demo"),
    "completion": ("dca-fast completion bash > dca-fast.bash",),
    "help": ("dca-fast help", "dca-fast help encode"),
}
