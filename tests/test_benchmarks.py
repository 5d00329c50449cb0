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

FAILS = """import pytest, time
@pytest.mark.gpu
def test_wrong(): assert [1,2]==[1,3], 'two numbers differ'
@pytest.mark.gpu
def test_right(): pass
def test_on_the_cpu(): raise RuntimeError
@pytest.mark.gpu
def test_slow(): time.sleep(SECONDS)
"""
def test_messages_of_failures_are_kept(tmp_path):
    "Also of a file that takes too long"
    for seconds,limit in ((0,60), (300,30)):
        (tmp_path/'test_it.py').write_text(FAILS.replace('SECONDS', str(seconds)))
        ok,last,failed = gpu.run_file(tmp_path/'test_it.py', limit)
        assert not ok and failed[0].startswith('test_wrong: AssertionError: two numbers differ'), failed
        assert ('2 passed' in last and len(failed)==1) if not seconds else failed[-1]=='stopped after 30 s'

def test_failures_of_cells_name_their_line(tmp_path, monkeypatch):
    cells = ['a = 1', '#| cuda\nb = 2', 'c = 3\nassert a==2, "a is 1"\nd = 4', 'e = c+d']
    nb = dict(cells=[dict(cell_type='code', source=c) for c in cells])
    (tmp_path/'x.ipynb').write_text(json.dumps(nb))
    passed,n,failed = gpu.run_notebook(str(tmp_path/'x.ipynb'))
    assert (n,len(failed))==(1,2) and failed[0]=='AssertionError: a is 1 in: assert a==2, "a is 1"', failed
    assert "NameError: name 'd' is not defined" in failed[1]

def test_cells_for_a_gpu_are_found(monkeypatch):
    assert {p.stem for p in gpu.gpu_notebooks()}>={'20_data.augment','50_semi.flexmatch'}
    assert {p.stem for p in gpu.gpu_test_files()}>={'test_methods','test_losses_contract','test_graph','test_compose'}
    monkeypatch.setattr(sys, 'argv', ['gpu.py', '--smoke', '--only', 'stepp'])
    with pytest.raises(ValueError, match='--only'): gpu.main()
