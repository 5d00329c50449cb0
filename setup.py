"The metadata of `settings.ini`, for setuptools"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read('settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
def lines(key): return cfg.get(key, '').split('\n')[1:]

statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature', '7 - Inactive']
pythons = ['3.10', '3.11', '3.12', '3.13']
pythons = pythons[pythons.index(cfg['min_python']):]

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    license='Apache-2.0',
    url=cfg['git_url'],
    project_urls={
        'Documentation': cfg['doc_url'],
        'Source': cfg['git_url'],
        'Issues': f"{cfg['git_url']}/issues",
        'Changelog': f"{cfg['git_url']}/blob/main/CHANGELOG.md",
    },
    classifiers=[
        f"Development Status :: {statuses[int(cfg['status'])-1]}",
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Natural Language :: English',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: {v}' for v in pythons),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['fastssl', 'fastssl.*']),
    package_data={'fastssl': ['py.typed']},
    python_requires=f">={cfg['min_python']}",
    install_requires=lines('requirements'),
    extras_require={key.removesuffix('_requirements'):lines(key) for key in cfg if key.endswith('_requirements')},
    entry_points=dict(console_scripts=lines('console_scripts'), nbdev=['fastssl=fastssl._modidx:d']),
    zip_safe=False)
