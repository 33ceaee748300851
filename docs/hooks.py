"""Hooks of mkdocs: pages of the executed examples, and equations as MathML, which browsers draw without any script."""

import ast
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

EXAMPLES = Path(__file__).parent / "examples"
OUTPUTS = Path(__file__).parent.parent / "build" / "examples"  # where `make docs` runs them
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
DISPLAY, INLINE = re.compile(r"\$\$(.+?)\$\$", re.DOTALL), re.compile(r"(?<![\\$])\$([^$\n]+)\$")


def on_files(files: Files, *, config, **unused) -> Files:
    """A page for every example: what it is, the script, and what it printed."""
    for script in sorted(EXAMPLES.glob("[0-9]_*.py")):
        printed = OUTPUTS / f"{script.stem}.txt"
        if not printed.is_file():
            raise PluginError(f"{script.name} has not been run: use `make docs`")
        source = script.read_text()
        title = ast.get_docstring(ast.parse(source)) or script.stem
        code = source.partition('"""\n\n')[2]
        page = f"# {title.partition(':')[0].rstrip('.')}\n\n{title}\n\n```python\n{code}```\n\nIt prints\n\n"
        page += f"```text\n{printed.read_text()}```\n"
        files.append(File.generated(config, f"examples/{script.stem}.md", content=page))
    return files


def on_page_markdown(markdown: str, **unused) -> str:
    """$...$ and $$...$$ outside code as MathML."""
    pieces = CODE.split(markdown)
    return "".join(piece if i % 2 else _equations(piece) for i, piece in enumerate(pieces))


def _equations(text: str) -> str:
    text = DISPLAY.sub(lambda m: convert(m[1].strip(), display="block"), text)
    return INLINE.sub(lambda m: convert(m[1]), text)
