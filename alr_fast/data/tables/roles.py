"""Which column of a table is which: the names that people give to paths, labels, splits and ids."""

import re
from collections.abc import Mapping, Sequence

from alr_fast.utils.text import did_you_mean

# Role -> its names. They are compared without case, and with _ for blanks and hyphens.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "path": (
        *("path", "paths", "file", "files", "filename", "filenames", "file_name", "fname"),
        *("filepath", "file_path", "relative_path", "rel_path", "relpath"),
        *("image", "images", "img", "image_path", "img_path", "imagepath", "impath"),
        *("image_file", "img_file", "image_filename", "image_file_name", "image_name"),
        *("imagename", "img_name", "image_id", "imageid", "img_id"),
    ),
    "label": (
        *("label", "labels", "class", "classes", "class_name", "classname", "class_label"),
        *("class_id", "class_idx", "class_index", "category", "category_name", "category_id"),
        *("target", "targets", "y", "label_name", "label_id", "label_idx", "noisy_label"),
    ),
    "clean_label": (
        *("clean_label", "clean_labels", "true_label", "true_labels", "true_class"),
        *("ground_truth", "groundtruth", "gt", "gt_label", "y_true", "y_clean"),
    ),
    "split": ("split", "splits", "subset", "set", "partition", "data_set", "dataset_split"),
    "id": ("id", "ids", "sample_id", "sample_ids", "index", "idx"),
}


def find_column(
    role: str, columns: Sequence[str], chosen: Mapping[str, str] | None = None
) -> str | None:
    """Name of the column with a role; None without one.

    The column that the user chose, else the one with the exact name of the role, else one with this
    name in another spelling, else the only synonym.

    Args:
        role: A key of `SYNONYMS`.
        columns: Names of the columns.
        chosen: Role -> name of a column.

    Raises:
        ValueError: Several columns may have the role, or the chosen column does not exist.
    """
    name = (chosen or {}).get(role)
    if name is not None:
        if name not in columns:
            raise ValueError(
                f"has no column {name} for {role}; choose from {', '.join(columns[:20])}"
                f"{did_you_mean(name, columns[:20])}"
            )
        candidates = [column for column in columns if column == name]
    else:
        taken = set((chosen or {}).values())
        candidates = next(
            filter(
                None,
                (
                    [column for column in columns if column == role],
                    [column for column in columns if _plain(column) == role],
                    [column for column in columns if role_of(column) == role],
                ),
            ),
            [],
        )
        candidates = [column for column in candidates if column not in taken]
    if len(candidates) > 1:
        if len(set(candidates)) == 1:
            raise ValueError(f"several columns {candidates[0]}; keep one")
        raise ValueError(
            f"the columns {' and '.join(candidates)} may each be the {role}; name the right one "
            f"{role}, or choose one"
        )
    return candidates[0] if candidates else None


def role_of(column: str, chosen: Mapping[str, str] | None = None) -> str | None:
    """The role for which the user chose a column, else that of its name; None without one."""
    roles = (role for role, name in (chosen or {}).items() if name == column)
    return next(roles, _ROLES.get(_plain(column)))


def _plain(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().casefold())


# Roles of columns that may say yes and no; None for columns without a role.
FLAGS = ("split", None)
_ROLES = {name: role for role, names in SYNONYMS.items() for name in names}
