"""What tells two jobs apart: settings and inputs as a manifest holds them, in words."""

from typing import Any

from pabee_fast.shown import changed


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return in words what is not as it was when the job was begun."""
    old, new = before["settings"], now["settings"]
    told = [
        changed(name, old.get(name, "unset"), new.get(name, "unset"))
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    files, others = ({one["path"]: one for one in job["inputs"]} for job in (before, now))
    told += [f"the input {path} is gone" for path in files if path not in others]
    told += [f"the input {path} is new" for path in others if path not in files]
    for path in files.keys() & others.keys():
        one, other = files[path], others[path]
        if one["size"] != other["size"]:
            told.append(changed(f"the size of the input {path}", one["size"], other["size"]))
            continue
        was_written = one.get("modified", other["modified"])
        if one["sample"] != other["sample"] or (was_written != other["modified"] and type(was_written) is not int):
            told.append(f"the input {path} has other content")
        elif was_written != other["modified"]:
            seconds, rest = divmod(was_written, 10**9)
            told.append(
                f"the input {path} was written again meanwhile, and may hold other rows (if it does not, give it back "
                f"its time: touch -d @{seconds}.{rest:09d} FILE)"
            )
    if not told and list(files) != list(others):
        told.append("the inputs are in another order")
    return told
