"The methods' columns reach TensorBoard and CSVLogger with the values of the table"
import pytest
from helpers import *

def test_csv_logger():
    learn = fit(mk([FixMatchCallback(.1), CSVLogger()]), 2)
    log = pd.read_csv(learn.path/'history.csv')
    assert list(log.columns)==['epoch','train_loss','valid_loss','accuracy','fix_match_loss','kept','pseudo_acc','time']
    close(log[list(log.columns[1:-1])].values, np.array([list(v) for v in learn.recorder.values]), 1e-5)

def test_tensorboard():
    pytest.importorskip('tensorboard', reason='tensorboard is not installed')
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    learn = mk([FixMatchCallback(.1), EMACallback(.9)])
    before = {type(c) for c in learn.cbs}
    with quiet(learn): learn.fit(2, cbs=TensorBoardCallback(learn.path/'tb', trace_model=True, log_preds=True))
    events = EventAccumulator(str(learn.path/'tb')).Reload()
    cols = ['valid_loss','accuracy','fix_match_loss','kept','pseudo_acc']
    assert set(cols)|{'train_loss','lr_0'}<=set(events.Tags()['scalars'])
    for c,vals in zip(cols, zip(*[list(v)[1:] for v in learn.recorder.values])): close([e.value for e in events.Scalars(c)], vals, 1e-5)
    assert {e.step for e in events.Scalars('train_loss')}=={*range(1,7)} and {type(c) for c in learn.cbs}==before
    with quiet(learn): learn.fit(1)                                     # the next fit works too
    assert len(learn.recorder.ssl['kept'])==3
