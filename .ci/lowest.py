#!/usr/bin/env python
"Print the lowest version of each requirement that settings.ini admits, as constraints for pip"
from configparser import ConfigParser
from pathlib import Path

cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read(Path(__file__).parent.parent/'settings.ini', encoding='utf-8')
for requirement in cfg['DEFAULT']['requirements'].split():
    name,_,version = requirement.partition('>=')
    if version: print(f'{name}=={version}')
