"However a fit ends, it leaves nothing behind: callbacks, loaders, weights, workers, files"
import gc, multiprocessing, os, pytest, time
from helpers import *

class Stop(Callback):
    order = 100
    def __init__(self, where, exc): store_attr()
    def after_batch(self):
        if self.where==('train' if self.training else 'valid') and self.epoch==1 and self.iter==1: raise self.exc('stop')

def files():
    "The open files of this process, by name"
    return sorted(os.path.realpath(f'/proc/self/fd/{f}') for f in os.listdir('/proc/self/fd') if os.path.lexists(f'/proc/self/fd/{f}'))
def settled_files():
    "The open files, once all workers have ended and the list has stopped changing"
    last,same = None,0
    for _ in range(200):
        gc.collect()
        now = files()
        same = same+1 if now==last and not multiprocessing.active_children() else 0
        if same==3: break
        last = now
        time.sleep(.05)
    return now,len(multiprocessing.active_children())

def pictures(path):
    "Digits as files, for workers to read: 80 for training and 20 for validation in folders by class, 60 without labels"
    X,y = digits_data()
    for i in range(160):
        f = path/('train' if i<80 else 'valid' if i<100 else 'unlabeled')/(str(y[i]) if i<100 else '')/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(X[i]).save(f)
    return path

@pytest.mark.parametrize('given_to', ['fit', 'learner'])
@pytest.mark.parametrize('where', ['train', 'valid'])
@pytest.mark.parametrize('exc', [KeyboardInterrupt, ValueError, CancelFitException])
def test_interrupts(tmp_path, given_to, where, exc): interrupted(tmp_path, given_to, where, exc)

@pytest.mark.parametrize('given_to,where,exc', [('fit','train',KeyboardInterrupt), ('learner','train',KeyboardInterrupt), ('fit','valid',ValueError), ('learner','valid',CancelFitException)])
def test_interrupts_of_workers_that_live_across_epochs(tmp_path, given_to, where, exc): interrupted(tmp_path, given_to, where, exc, persistent_workers=True)

def interrupted(tmp_path, given_to, where, exc, **kwargs):
    dls = SSLDataLoaders.from_folder(pictures(tmp_path), img_cls=PILImageBW, bs=10, val_bs=5, uratio=2, n_steps=4, num_workers=2, **kwargs)
    mine = lambda: [Consistent(), EMACallback(.9)]
    learn = mk(mine() if given_to=='learner' else None, dls=dls)
    list(dls.train)                                                         # Python opens a file or two for the first worker
    before,train,n_files = sorted(map(repr, learn.cbs)),dls.train,settled_files()
    try: fit(learn, 2, cbs=[Stop(where, exc), *(mine() if given_to=='fit' else [])])
    except exc: pass
    learn._end_cleanup()                                      # drops the learner's last batch, as fastai does only after a complete fit
    assert sorted(map(repr, learn.cbs))==before
    assert dls.train is train and type(train) is TfmdDL and len(dls.loaders)==2
    assert settled_files()==n_files
    if exc is not CancelFitException:
        assert not hasattr(learn, 'ema') or learn.ema.raw is None
    if given_to=='fit': assert not hasattr(learn, 'ssl_step') and not hasattr(learn, 'consistent')
    w = weights(learn.model)
    fit(learn, cbs=mine() if given_to=='fit' else None)
    assert not torch.equal(weights(learn.model), w)
    assert settled_files()==n_files

@pytest.mark.parametrize('where', ['train', 'valid'])
def test_raw_weights_after_an_interrupt(where):
    res = []
    for cbs in ([Consistent()], [Consistent(), EMACallback(.9)]):
        learn = mk(cbs)
        learn.dls.valid.bs = 100
        with pytest.raises(KeyboardInterrupt): fit(learn, 2, cbs=Stop(where, KeyboardInterrupt))
        res.append(weights(learn.model))
    assert torch.equal(*res)

def test_an_interrupted_lr_find_does_not_affect_the_next_fit():
    class Counts(Consistent):
        def setup(self): self.seen = torch.zeros(self.n_pool)
        def unsup_loss(self, b): self.seen[b.idx] += 1; return super().unsup_loss(b)
    class StopAt4(Callback):
        order = 100
        def after_batch(self):
            if self.train_iter==4: raise KeyboardInterrupt()
    learn = fit(mk([Counts(), EMACallback(.9)]))
    learn.add_cb(StopAt4())
    with quiet(learn), pytest.raises(KeyboardInterrupt): learn.lr_find(num_it=12, show_plot=False, stop_div=False)
    learn.remove_cb(StopAt4)
    fit(learn, 3)
    assert learn.counts.seen.sum()==4*60 and learn.dls.unlabeled.pos==12    # four epochs of three steps, and none of lr_find
    assert learn.ema.teacher.n==9                                           # lr_find changed the weights, so the average starts anew
    assert torch.equal(weights(learn.model), weights(learn.ema.teacher.model))

def test_the_step_is_added_and_removed_with_the_methods():
    learn = mk()
    names = lambda: [type(c).__name__ for c in learn.cbs]
    before = names()
    a,b = Consistent(),Entropy()
    learn.add_cbs([a, b])
    brought = ['SSLStep','SSLRecorder','StopOnNaN','PoolReport']
    assert names()==[*before, *brought, 'Consistent', 'Entropy']
    learn.remove_cb(a); assert names()==[*before, *brought, 'Entropy']
    learn.remove_cb(Entropy); assert names()==before
    learn.add_cbs([SSLStep('separate'), a]); learn.remove_cb(a)
    assert names()==[*before, 'SSLStep']                             # one that was added by the user stays

def test_removed_method_leaves_plain_training():
    plain = fit(mk(dls=mk_dls()))
    learn = mk(dls=mk_dls()); learn.add_cb(Consistent()); learn.remove_cb(Consistent)
    assert torch.equal(weights(fit(learn).model), weights(plain.model))

def test_no_batch_is_kept():
    learn = fit(mk(Consistent()))
    step = learn.ssl_step
    assert (step.epoch_dl.b, step.epoch_dl.u, step.epoch_dl.raw)==(None, None, None)
    assert set(step.__getstate__()) & {'epoch_dl','view_maker','pending','saved'}==set()

def test_pool_position_continues():
    learn = fit(mk(Consistent()), 2)
    assert learn.dls.unlabeled.pos==6
    fit(learn); assert learn.dls.unlabeled.pos==9
