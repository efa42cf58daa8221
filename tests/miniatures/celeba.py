"""CelebA: seven images; numbers aligned with double spaces, as the owners print them."""

from __future__ import annotations

from pathlib import Path

from miniatures import face, text

ARGUMENTS: dict = {}
HEADER = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose "
    "Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee "
    "Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard "
    "Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling "
    "Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young"
)
ATTRIBUTES = HEADER.split()
HAS = (
    ("Smiling", "Young"),
    ("Male", "Smiling"),
    ("Male", "Bald", "Goatee"),
    (),
    ("Wearing_Hat", "Young"),
    ("Male",),
    ("5_o_Clock_Shadow", "Male", "Young"),
)
PARTS = (0, 0, 0, 0, 1, 2, 2)
PEOPLE = (2880, 2937, 8692, 2880, 11, 12, 13)


def write(root: Path) -> None:
    files = [f"{i:06d}.jpg" for i in range(1, len(HAS) + 1)]
    rows = [
        file + "".join(f" {1 if attribute in has else -1:2d}" for attribute in ATTRIBUTES)
        for file, has in zip(files, HAS, strict=True)
    ]
    text(root / "Anno" / "list_attr_celeba.txt", str(len(files)), f"{HEADER} ", *rows)
    for path, values in (
        ("Eval/list_eval_partition.txt", PARTS),
        ("Anno/identity_CelebA.txt", PEOPLE),
    ):
        text(root / path, *[f"{file} {value}" for file, value in zip(files, values, strict=True)])
    for i, file in enumerate(files):
        face(root / "Img" / "img_align_celeba" / file, i, (89, 109))
