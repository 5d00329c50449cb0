"The GPU check runs on the CPU, and a part that fails does not lose the others"
import json, sys
from pathlib import Path
import pytest
sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'benchmarks'))
import gpu

def run(monkeypatch, tmp_path, *args):
    out = tmp_path/'gpu.json'
    monkeypatch.setattr(sys, 'argv', ['gpu.py', '--smoke', '--out', str(out), *args])
    code = gpu.main()
    return code,json.loads(out.read_text())

def test_gpu_check_on_the_cpu(monkeypatch, tmp_path):
    code,report = run(monkeypatch, tmp_path)
    assert code==0 and not report['failed'], report['failed']
    parts = {}
    for row in report['rows']: parts.setdefault(row['part'], []).append(row)
    assert set(parts)=={'cells','precision','step','graph','pieces','learns','speedrun'}
    assert all(len(rows)>1 for rows in parts.values())
    assert all(row['value']>0 for row in parts['step'] if row['unit']=='ms')
    assert sum('largest difference' in row['what'] and 'EXCEEDED' not in row['note'] for row in parts['precision'])==2
    ratio = [row['value'] for row in parts['step'] if row['unit']=='ratio']
    assert len(ratio)==1 and .3<ratio[0]<5
    assert all(0<row['value']<=100 for row in parts['learns'] if row['unit']=='%')
    assert all('EXCEEDED' not in row['note'] for row in parts['graph'])
    assert sum(row['unit']=='ms' and 'library' in row['what'] for row in parts['graph'])==2 and report['profiles'].keys()=={'eager, separate','to_graph, separate'}

def test_a_part_that_fails(monkeypatch, tmp_path):
    def fail(t): raise RuntimeError('no such kernel')
    monkeypatch.setattr(gpu, 'check_precision', fail)
    code,report = run(monkeypatch, tmp_path, '--only', 'precision,pieces')
    assert code==1 and 'no such kernel' in report['failed']['precision']
    assert any('no such kernel' in row['what'] for row in report['rows'])
    assert sum(row['part']=='pieces' for row in report['rows'])>4

def test_cells_for_a_gpu_are_found(monkeypatch):
    assert {p.stem for p in gpu.gpu_notebooks()}>={'20_data.augment','50_semi.flexmatch'}
    assert {p.stem for p in gpu.gpu_test_files()}>={'test_methods','test_losses_contract'}
    monkeypatch.setattr(sys, 'argv', ['gpu.py', '--smoke', '--only', 'stepp'])
    with pytest.raises(ValueError, match='--only'): gpu.main()
