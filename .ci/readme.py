#!/usr/bin/env python
"Write README.md from nbs/index.ipynb: text, code and printed output. `--check` writes nothing, and fails if the two differ"
import re, sys
from pathlib import Path
from fastcore.nbio import read_nb

root = Path(__file__).parent.parent

def text_of(output):
    "The printed text of `output`"
    if output.output_type=='stream': return ''.join(output.text)
    if output.output_type=='display_data': return ''        # pictures and progress bars
    return ''.join(output.get('data', {}).get('text/plain', ''))

def render(path):
    "The notebook at `path` as Markdown"
    parts = []
    for c in read_nb(path).cells:
        src = c.source.strip()
        hidden = c.cell_type=='code' and re.search(r'^#\|\s*(hide|default_exp|export)', src, re.M)
        if not src or hidden: continue
        if c.cell_type!='code': parts.append(src)
        else:
            code = re.sub(r'^#[|].*\n', '', src, flags=re.M).strip()
            parts.append(f'```python\n{code}\n```')
            if out:=''.join(map(text_of, c.get('outputs', []))).strip(): parts.append(f'```\n{out}\n```')
    return '<!-- written from nbs/index.ipynb by .ci/readme.py -->\n\n' + '\n\n'.join(parts) + '\n'

if __name__=='__main__':
    new,readme = render(root/'nbs'/'index.ipynb'),root/'README.md'
    if '--check' not in sys.argv: readme.write_text(new, encoding='utf-8')
    elif readme.read_text(encoding='utf-8')!=new: sys.exit('README.md differs from nbs/index.ipynb: run python .ci/readme.py')
