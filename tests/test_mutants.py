"The faults of `mutants.py` still apply to the modules and to their notebooks"
import pytest
import mutants

@pytest.mark.parametrize('module', mutants.faults)
def test_each_fault_is_found_once(module):
    for fault in mutants.faults[module]:
        assert fault.old!=fault.new and fault.why
        compile(mutants.patched_module(module, fault), module, 'exec')
        assert mutants.patched_cells(module, fault)!=mutants.patched_cells(module, None)

def test_names_and_numbers():
    assert set(mutants.module_tests)==set(mutants.faults) and sum(map(len, mutants.faults.values()))>=40
    for files in mutants.module_tests.values(): assert all((mutants.root/'tests'/f).exists() for f in files)
    with pytest.raises(ValueError, match='found 0 times instead of once'): mutants.patched_module('core', mutants.Fault('no such line', '', ''))
