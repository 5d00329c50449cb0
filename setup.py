"The metadata of `settings.ini`, handed to setuptools"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read('settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
lines = lambda key: cfg.get(key, '').split('\n')[1:]

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', url=cfg['git_url'],
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=['fastssl', 'fastssl.*']), python_requires=f">={cfg['min_python']}",
    install_requires=lines('requirements'), extras_require=dict(dev=lines('dev_requirements'), bench=lines('bench_requirements')),
    entry_points=dict(console_scripts=lines('console_scripts'), nbdev=['fastssl=fastssl._modidx:d']),
    zip_safe=False)
