"""Reads what was written: a translation is compared with its origin as a user would read it.

Python is read as syntax and never executed.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from overlapkit.config.emit.forms import Form
from overlapkit.config.emit.megatron_lm_flags import USERBUFFERS_FILE
from overlapkit.config.megatron_lm.script import read_megatron_lm
from overlapkit.config.overrides import parse_override
from overlapkit.config.run import Settings, read_settings
from overlapkit.config.shell.follow import follow_script
from overlapkit.config.yaml_file import Document, load_yaml

TRANSLATION = "the translation"
"""What messages call it."""
_USERBUFFERS = "megatron.bridge.training.comm_overlap"


def read_back(text: str, form: Form, origin: Settings) -> Settings:
    """The settings in a translation, for the versions of its origin.

    Raises:
        InputError: it cannot be read; that is a bug of what wrote it.
    """
    if form == "megatron-lm":
        read = _script(text)
    elif form == "yaml":
        read = read_settings(Document(TRANSLATION, load_yaml(text)[0] or {}))
    elif form == "hydra":
        read = _overrides(text)
    else:
        read = read_settings(Document(TRANSLATION, _python(text)))
    return replace(
        read,
        stacks=origin.stacks,
        stack_given=origin.stack_given,
        stack_path=origin.stack_path,
        stack_overridden=origin.stack_overridden,
    )


def _script(text: str) -> Settings:
    with TemporaryDirectory(prefix="overlapkit-") as folder:
        script = Path(folder) / "translation.sh"
        script.write_text(text, encoding="utf-8")
        # The script writes this file when it runs; the settings refer to it.
        _, begins, rest = text.partition(f"cat > {USERBUFFERS_FILE} <<'EOF'\n")
        if begins:
            content = rest.partition("\nEOF\n")[0]
            (Path(folder) / USERBUFFERS_FILE).write_text(content, encoding="utf-8")
        # A fork's flag was passed over before, with the user's consent.
        read = read_megatron_lm(str(script), allow_unknown=True)
    launch = read.launch
    if launch is not None:
        # What its origin leaves unknown is said of the origin.
        launch = replace(launch, source=TRANSLATION, gaps=())
    return replace(read, source=TRANSLATION, launch=launch)


def _overrides(text: str) -> Settings:
    words = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    data: dict[str, Any] = {"model": {}, "ddp": {}}
    if not words.strip():
        return read_settings(Document(TRANSLATION, data))
    (command,) = follow_script(f"run {words}\n", TRANSLATION, {}).started
    overrides = [parse_override(word.text, allow_unknown=True) for word in command.words[1:]]
    return read_settings(Document(TRANSLATION, data), overrides)


def _python(text: str) -> dict[str, Any]:
    """The sections in a call of ConfigContainer, as data."""
    calls = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and _name(node.func) == "ConfigContainer"
    ]
    (call,) = calls
    return {str(keyword.arg): _data(keyword.value) for keyword in call.keywords}


def _data(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        content = {str(keyword.arg): _data(keyword.value) for keyword in node.keywords}
        name = _name(node.func)
        if name.endswith("OverlapCfg") and name != "TransformerLayerTPOverlapCfg":
            # Its defaults are those of the class.
            return {"_target_": f"{_USERBUFFERS}.{name}", **content}
        return content
    if isinstance(node, (ast.Name, ast.Attribute)):
        return _name(node)
    if isinstance(node, ast.Dict):
        return {
            _data(key): _data(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_data(item) for item in node.elts]
    return ast.literal_eval(node)


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""
