#!/usr/bin/env python
"""How dense the code is: `density.py [FOLDER …]` (default: fastssl).

Per 1,000 lines that are neither blank nor comments: lines over 160 characters, and assignments of three or more targets at once.
Nodes of the syntax tree are counted per line of code, without docstrings and the lines of a signature (which have one parameter each)."""
import ast, io, sys, tokenize
from pathlib import Path

def docstring_lines(tree):
    for node in ast.walk(tree):
        body = getattr(node, 'body', None)
        if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr): continue
        value = body[0].value
        if isinstance(value, ast.Constant) and isinstance(value.value, str): yield from range(value.lineno, value.end_lineno+1)

def signature_lines(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef): yield from range(node.lineno+1, node.body[0].lineno)

def code_lines(src, tree):
    "Numbers of the lines that hold code"
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
    lines = set()
    for t in tokenize.generate_tokens(io.StringIO(src).readline):
        if t.type not in skip: lines.update(range(t.start[0], t.end[0]+1))
    return lines-set(docstring_lines(tree))-set(signature_lines(tree))

def is_several(node):
    "Is it an assignment like `a,b,c = 1,2,3`?"
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple) and len(node.targets[0].elts)>=3

def measure(folder):
    lines = wide = several = nodes = code = 0
    for f in sorted(Path(folder).rglob('*.py')):
        if f.name=='_modidx.py': continue
        src = f.read_text(encoding='utf-8')
        tree = ast.parse(src)
        lines += sum(bool(l.strip()) and not l.strip().startswith('#') for l in src.splitlines())
        wide += sum(len(l)>160 for l in src.splitlines())
        several += sum(map(is_several, ast.walk(tree)))
        nodes += sum(1 for _ in ast.walk(tree))
        code += len(code_lines(src, tree))
    return lines,1000*wide/max(lines, 1),1000*several/max(lines, 1),nodes/max(code, 1)

if __name__=='__main__':
    print(f'{"":24}{"lines":>12}{"over 160":>12}{"3+ targets":>12}{"nodes/line":>12}')
    for folder in sys.argv[1:] or [Path(__file__).parent.parent/'fastssl']:
        n,wide,several,nodes = measure(folder)
        print(f'{Path(folder).name:24}{n:12}{wide:12.1f}{several:12.1f}{nodes:12.1f}')
