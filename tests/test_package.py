"The package is what the notebooks export, its README names all of it, and it installs"
import ast, configparser, importlib, os, pkgutil, re, shutil, subprocess, sys, warnings, zipfile
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
cfg = configparser.ConfigParser(delimiters=['='], interpolation=None)
cfg.read(root/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
notebooks = sorted((root/'nbs').rglob('*.ipynb'))

def sh(*args, **kw):
    r = subprocess.run([str(a) for a in args], capture_output=True, text=True, **kw)
    assert r.returncode==0, f'{args}\n{r.stdout[-3000:]}{r.stderr[-3000:]}'
    return r.stdout

def copy_project(to):
    skip = shutil.ignore_patterns('.git', '__pycache__', '*.egg-info', 'build', 'dist', '.ipynb_checkpoints', '.hypothesis', '.pytest_cache')
    return Path(shutil.copytree(root, to, ignore=skip))

def python_files(folder): return {str(p.relative_to(folder)):p.read_text(encoding='utf-8') for p in Path(folder).rglob('*.py')}

def test_package_is_a_fresh_export(tmp_path):
    new = copy_project(tmp_path/'p')
    for p in (new/'fastssl').rglob('*.py'):
        if p.name!='__init__.py': p.unlink()
    env = {k:v for k,v in os.environ.items() if k!='IN_TEST'}
    sh('nbdev-export', cwd=new, env=env)
    old,fresh = python_files(root/'fastssl'),python_files(new/'fastssl')
    assert sorted(old)==sorted(fresh)
    for f in old: assert old[f]==fresh[f], f'{f} is not what its notebook exports'

def test_notebooks_are_clean(tmp_path):
    new = copy_project(tmp_path/'p')
    sh('nbdev-clean', cwd=new)
    for nb in notebooks: assert nb.read_bytes()==(new/nb.relative_to(root)).read_bytes(), f'{nb.name}: run nbdev-clean'

def test_titles_hold_no_settings():
    "nbdev reads a list with colons below the title as settings of the page"
    from fastcore.nbio import nb_frontmatter, read_nb
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for p in notebooks: assert set(nb_frontmatter(read_nb(p)))=={'title','description'}, p.name

def test_outputs_name_no_path_of_a_machine():
    "A warning in an output names the file of the environment that ran it"
    named = {p.name for p in (root/'nbs').rglob('*.ipynb') if re.search(r'site-packages|ipykernel_\d', p.read_text(encoding='utf-8'))}
    assert not named

def test_readme_is_the_index():
    sh(sys.executable, root/'.ci'/'readme.py', '--check')
    assert 'TABLE' not in (root/'README.md').read_text(encoding='utf-8')

# ------ the README's tables
def readme_table(heading):
    "First cell → second cell of each row of the table in the section `heading`"
    section = (root/'README.md').read_text(encoding='utf-8').split(f'\n## {heading}\n')[1].split('\n## ')[0]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in section.splitlines() if line.startswith('|')]
    return {cells[0]:cells[1] for cells in rows[2:]}                   # without header and rule

def code_names(text): return set(re.findall(r'`(\w+)`', text))

def registered(key):
    "Row → names of the registered classes that belong in it"
    import fastssl.all
    from fastssl.training.registry import registered_methods
    rows = {}
    for m in registered_methods.values(): rows.setdefault(key(m), set()).add(m.cls.__name__)
    return rows

def check_rows(table, expected, known):
    "Each row of `table` has the classes `expected` there, and no other of `known`"
    assert set(table)==set(expected)
    for row,classes in expected.items(): assert code_names(table[row]) & known==classes, row

def test_readme_has_every_method_in_its_family():
    families = registered(lambda m: m.family)
    known = set().union(*families.values())
    del families['another domain']
    check_rows(readme_table('Methods'), families, known)

def test_readme_has_every_method_for_another_domain():
    targets = registered(lambda m: m.targets if m.family=='another domain' else None)
    del targets[None]
    check_rows(readme_table('Another domain'), targets, set().union(*targets.values()))

def test_readme_has_every_module():
    found = {}
    for m in pkgutil.walk_packages([str(root/'fastssl')], 'fastssl.'):
        package,_,name = m.name.rpartition('.')
        if not m.ispkg and name!='_modidx': found.setdefault(f'`{package}`', set()).add(name)
    table = readme_table('Packages')
    assert {package:code_names(names) for package,names in table.items()}==found

def test_changelog_names_modules():
    "Every module in the changelog's second column exists, and none of the first"
    rows = re.findall(r'^\| `(fastssl\.[\w.]+)` \| (.*) \|$', (root/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)
    assert len(rows)>20
    for old,new in rows:
        for name in re.findall(r'`(fastssl\.[\w.]+)`', new): importlib.import_module(name)
        assert not (root/f'{old.replace(".", "/")}.py').exists(), f'{old} exists'

def test_version():
    import fastssl
    assert fastssl.__version__==cfg['version']

def modules():
    import fastssl
    return sorted(m.name for m in pkgutil.walk_packages(fastssl.__path__, 'fastssl.'))
@pytest.mark.parametrize('name', modules())
def test_every_module_imports(name): importlib.import_module(name)

def test_all_has_everything():
    "`fastssl.all` re-exports every public name of every module, and no name twice with two meanings"
    import fastssl.all
    seen = {}
    for name in modules():
        if name in ('fastssl.all', 'fastssl._modidx', 'fastssl.cli.train', 'fastssl.cli.distill', 'fastssl.cli.predict', 'fastssl.cli.demo', 'fastssl.cli.student'): continue
        m = importlib.import_module(name)
        for k in getattr(m, '__all__', ()):
            if k in fastssl.all._in_their_modules: continue
            assert getattr(fastssl.all, k, None) is getattr(m, k), f'{k} of {name} is not in fastssl.all'
            assert seen.setdefault(k, name)==name, f'{k} is exported by {seen[k]} and {name}'

def test_imports_point_one_way():
    "A notebook imports only modules of smaller numbers in its exported cells, and no package of methods another one"
    from fastcore.nbio import read_nb
    number,uses = {},{}
    for nb in (root/'nbs').glob('[0-9]*.ipynb'):
        module,found = None,set()
        for c in read_nb(nb).cells:
            if c.cell_type!='code': continue
            for l in c.source.splitlines():
                if l.startswith('#| default_exp'): module = l.split()[-1]
            if '#| export' in c.source:
                for n in ast.walk(ast.parse(c.source)):
                    if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('fastssl.'): found.add(n.module[8:])
        number[module],uses[module] = nb.name.split('_')[0],found
    assert sorted(number.values())[0]=='00' and len(number)>10
    for module,found in uses.items():
        for o in found:
            assert number[o]<=number[module], f'{module} imports {o}, which comes later'
            a,b = module.split('.')[0],o.split('.')[0]
            assert a==b or not {a,b}<={'semi','adapt','distill'}, f'{module} imports {o}: packages of methods do not import each other'
    tens = {m.split('.')[0]:set() for m in number if '.' in m}
    for m,n in number.items():
        if '.' in m: tens[m.split('.')[0]].add(n[0])
    for package,ns in tens.items(): assert len(ns)==1, f'the notebooks of {package} have numbers of several tens: {ns}'

def test_sdist_wheel_install(tmp_path):
    new = copy_project(tmp_path/'p')
    sh(sys.executable, '-m', 'build', '--outdir', tmp_path/'dist', cwd=new)          # the wheel is built from the sdist
    wheel, = (tmp_path/'dist').glob('*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    assert {f'fastssl/{p.relative_to(root/"fastssl")}' for p in (root/'fastssl').rglob('*.py')}<=set(names)
    assert 'fastssl/py.typed' in names
    assert not [n for n in names if n.startswith(('nbs/','tests/'))]
    site = tmp_path/'site'
    sh(sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index', '--target', site, wheel)
    code = 'import fastssl.all, fastssl.cli.train, fastssl.cli.distill; print(fastssl.__file__)'
    out = sh(sys.executable, '-c', code, cwd=tmp_path, env={**os.environ, 'PYTHONPATH':str(site)})
    assert str(site) in out
    assert (site/'bin'/'fastssl_train').exists() and (site/'bin'/'fastssl_distill').exists()
    from importlib.metadata import Distribution
    meta = Distribution.at(next(site.glob('*.dist-info')))
    required = {r.split(';')[0].split('>')[0].strip() for r in meta.requires if 'extra' not in r}
    assert required=={'fastai','torch','timm','pandas','scikit-learn'} and meta.version==cfg['version']
    classifiers = meta.metadata.get_all('Classifier')
    assert 'Typing :: Typed' in classifiers and f"Programming Language :: Python :: {cfg['min_python']}" in classifiers
    urls = dict(u.split(', ') for u in meta.metadata.get_all('Project-URL'))
    assert {'Documentation','Source','Issues','Changelog'}<=set(urls) and urls['Documentation']==cfg['doc_url']
