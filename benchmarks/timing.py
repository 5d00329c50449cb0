"Paired timings, for the scripts in this folder"
import time
from statistics import median
from fastai.callback.core import Callback

def paired(fs, reps, clock=time.process_time, take=median):
    "Milliseconds of each function in `fs`, called in turn `reps` times: the median CPU time, which other work disturbs least (with a disk involved, pass a wall clock and `take=min`)"
    times = {k:[] for k in fs}
    for i in range(reps+1):
        for k,f in list(fs.items())[::1 if i%2 else -1]:                 # the order alternates
            start = clock()
            f()
            if i: times[k].append(1e3*(clock()-start))       # the first round warms up
    return {k:take(v) for k,v in times.items()}

class CPUTime(Callback):
    "CPU seconds of training, without validation"
    order = -100
    def before_fit(self): self.s = 0.
    def before_train(self): self.t = time.process_time()
    def after_train(self): self.s += time.process_time()-self.t
