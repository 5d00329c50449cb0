"""Everything that needs a GPU, in one run of at most `--minutes`: correctness, times, a curve, the speedrun.

`python benchmarks/gpu.py --data cifar10_train.npz --out gpu.json` prints one table and writes the same as JSON after each part. It needs no
network: the archive holds JPEG files as `jpeg`, `offset`, `label`, `classes`; without one, random images and the digits take its place.
Parts, chosen by `--only`: `cells` (every `#| cuda` cell, every other cell of its notebook on the CPU, and every test marked `gpu`),
`precision` (fp16, bf16 and channels_last against
float32 on the CPU), `step` (FixMatch with 64+448+448 rows on WRN-28-2), `graph` (the same recorded by
`to_graph`, and what runs in it), `pieces` (views, EMA, loaders), `learns` (a short FixMatch run
against labels alone), `speedrun`. A part that fails is named in the table, and the others still run. `--smoke` runs it all on the CPU, small."""
import argparse, json, os, signal, subprocess, sys, tempfile, time, traceback, types, warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from xml.etree import ElementTree
warnings.filterwarnings('ignore')
os.environ.setdefault('MPLBACKEND', 'agg')
os.environ.setdefault('IN_TEST', '1')
from fastai.vision.all import *
from fastai.callback.all import *
from fastssl.all import *

root = Path(__file__).resolve().parent.parent
cuda = torch.cuda.is_available()
device = torch.device('cuda' if cuda else 'cpu')

# ------ the table

class Table:
    "Rows of the report: printed at once, and written to `path` after each part"
    def __init__(self, path, minutes, smoke):
        store_attr()
        self.start,self.rows,self.failed,self.profiles = time.time(),[],{},{}
        card = torch.cuda.get_device_name() if cuda else 'CPU'
        self.about = dict(card=card, torch=torch.__version__, smoke=smoke, cpus=os.cpu_count())
        print(f'{card}, torch {torch.__version__}{", smoke" if smoke else ""}', flush=True)
    @property
    def left(self): return 60*self.minutes-(time.time()-self.start)
    def row(self, what, value, unit='', note=''):
        value = round(float(value), 4) if isinstance(value, (int,float,Tensor)) else value
        self.rows.append(dict(part=self.part, what=what, value=value, unit=unit, note=note))
        print(f'{self.part:<10}{what:<70}{value:>12} {unit:<8}{note}', flush=True)
    def run(self, part, f, least=20):
        "Run one part, unless fewer than `least` seconds are left; note its failure"
        self.part,start = part,time.time()
        if self.left<least: self.row('skipped: no time left', 0)
        else:
            try: f(self)
            except Exception as e:
                self.failed[part] = traceback.format_exc()
                self.row(f'FAILED: {type(e).__name__}: {str(e)[:200]}', 0)
        if cuda: torch.cuda.set_sync_debug_mode('default')
        self.row('seconds of this part', time.time()-start, 's')
        self.write()
    def write(self):
        if self.path is None: return
        out = dict(**self.about, seconds=round(time.time()-self.start, 1), rows=self.rows, failed=self.failed, profiles=self.profiles)
        with write_atomic(self.path) as tmp: tmp.write_text(json.dumps(out, indent=1))

def wait():
    if cuda: torch.cuda.synchronize()

def milliseconds(f, n, warm=3):
    "Mean time of `f` over `n` calls, after `warm` others: wall time on a GPU, CPU time of the process without one"
    clock = time.perf_counter if cuda else time.process_time
    for _ in range(warm): f()
    wait()
    start = clock()
    for _ in range(n): f()
    wait()
    return 1e3*(clock()-start)/n

# ------ (a) cells and tests

def cells_of(path):
    "Code cells of a notebook as pairs (source, does it need a GPU?), without those that `nbdev-test` skips"
    for c in json.loads(Path(path).read_text())['cells']:
        source = ''.join(c['source'])
        flags = {o for line in source.splitlines() if line.startswith('#|') for o in line[2:].split()}
        skipped = 'notest' in flags or 'slow' in flags or {'eval:','false'}<=flags
        if c['cell_type']=='code' and not skipped: yield source,'cuda' in flags

def failure(e, path, source):
    "First lines of an error: what it says, and the line of the cell where it came up"
    at = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename==path]
    line = source.splitlines()[at[-1]-1].strip() if at and at[-1]<=len(source.splitlines()) else source.splitlines()[0]
    return f'{type(e).__name__}: {first_lines(str(e))} in: {line[:160]}'

def first_lines(text, n=4): return ' | '.join([line.strip() for line in text.splitlines() if line.strip()][:n])[:500]

def run_notebook(path):
    "Run the cells of a notebook on the CPU, and those for a GPU where there is one: (passed and all of those, failures)"
    here,own_main = os.getcwd(),sys.modules['__main__']
    module = types.ModuleType('__main__')                           # where pickle finds the classes of cells
    module.display = print
    os.chdir(Path(path).resolve().parent)
    passed,n,failed = 0,0,[]
    for source,needs_gpu in cells_of(Path(path).name):
        n += needs_gpu
        if needs_gpu and not cuda: continue
        source = '\n'.join(line for line in source.splitlines() if not line.startswith(('%','!')))
        sys.modules['__main__'] = module                            # again for each cell: IPython may put its own there
        default_device(needs_gpu)
        try:
            with redirect_stdout(io.StringIO()): exec(compile(source, path, 'exec'), vars(module))
            passed += needs_gpu
        except Exception as e: failed.append(failure(e, path, source))
        finally:
            if cuda: torch.cuda.set_sync_debug_mode('default')
    os.chdir(here)
    default_device(None)
    sys.modules['__main__'] = own_main
    return passed,n,failed

def gpu_notebooks(): return [p for p in sorted((root/'nbs').glob('**/*.ipynb')) if any(needs for _,needs in cells_of(p))]
def gpu_test_files(): return [p for p in sorted((root/'tests').glob('test_*.py')) if '@pytest.mark.gpu' in p.read_text()]

def run_file(path, seconds):
    "Run a notebook's cells, or the tests of a file that are marked `gpu`, in a process of its own: (did all pass?, last line, failures)"
    env = {**os.environ, 'PYTHONPATH':f'{root}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder)/'report.xml'
        command = [sys.executable, __file__, '--notebook', str(path)]
        pytest = ['-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-m', 'gpu', f'--junitxml={report}', str(path)]
        if path.suffix=='.py': command = [sys.executable, *pytest]
        job = subprocess.Popen(command, env=env, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))        # a background job ignores it
        stopped = False
        try: out,_ = job.communicate(timeout=max(1, seconds))
        except subprocess.TimeoutExpired:
            stopped = True
            job.send_signal(signal.SIGINT)                          # pytest reports what it has then
            try: out,_ = job.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                job.kill()
                out,_ = job.communicate()
        failed = failures_in(report) if report.exists() else [line[7:] for line in out.splitlines() if line.startswith('FAILED ')]
    lines = [line for line in out.splitlines() if line.strip()] or ['no output']
    if stopped: failed.append(f'stopped after {seconds:.0f} s')
    elif job.returncode not in (0,5) and not failed: failed.append(' | '.join(lines[-6:]))
    return not failed,lines[-1],failed

def failures_in(report):
    "One line for each failed test in a report of pytest: name and first lines of the message"
    res = []
    for case in ElementTree.parse(report).iter('testcase'):
        for e in (*case.findall('failure'), *case.findall('error')):
            res.append(f"{case.get('name')}: {first_lines(e.get('message') or e.text or '')}")
    return res

def check_cells(t):
    "Small files first, a few at a time"
    files = sorted([*gpu_notebooks(), *gpu_test_files()], key=lambda p: (p.suffix=='.py', p.stat().st_size))
    t.row('notebooks and test files for a GPU', len(files), '', ' '.join(p.stem for p in files))
    if t.smoke:
        passed,n,failed = run_notebook(root/'nbs'/'50_semi.flexmatch.ipynb')
        t.row('50_semi.flexmatch: cells for a GPU, not run', n, '', '; '.join(failed))
        assert not failed, failed
        return
    if not cuda: raise RuntimeError('there is no GPU: use --smoke')
    end = time.time()+min(180, t.left/2)
    with ThreadPoolExecutor(min(4, os.cpu_count())) as pool:
        jobs = {pool.submit(lambda p: run_file(p, min(90, end-time.time())), p):p for p in files}
        for job in as_completed(jobs):
            ok,last,failed = job.result()
            name = jobs[job].stem
            t.row(name, 'ok' if ok else 'FAILED', '', last[:200])
            for message in failed[:12]: t.row(f'{name}: failure', '', '', message)
            if failed: t.failed[name] = failed

# ------ (a) numbers that agree

def brighter(x): return x*1.2+.1
def fixed_views(device, **kw):
    "Digits with views that draw nothing, the same on each device"
    set_seed(0)
    return digits_dls(bs=20, uratio=3, n_steps=3, batch_tfms=[Normalize.from_stats([.3],[.37])], strong=brighter, device=device, **kw)

class ChannelsLastModel(Callback):
    "The model in channels_last"
    def before_fit(self): self.learn.model.to(memory_format=torch.channels_last)

def without_dropout(model):
    for m in model.modules():
        if isinstance(m, (nn.Dropout, L2PreservedDropout)): m.p = 0.

def recorded(make, device, cbs=()):
    "What three steps of a method record; nothing is drawn on the device, and an update is proportional to the gradient, whose sign may be rounded"
    dls = fixed_views(device)
    set_seed(1)
    dls.train.rng = random.Random(1)
    learn = ssl_learner(dls, tiny_cnn(nf=8), cbs=[make(), *cbs], opt_func=partial(SGD, mom=.9))
    without_dropout(learn.model)
    with quiet(learn): learn.fit(1, 1e-2)
    return {k:torch.tensor([float(o) for o in v]) for k,v in learn.recorder.ssl.items()}

def check_precision(t):
    "The largest relative difference of any recorded loss to float32 on the CPU"
    draws = 'mixmatch','vat','selftuning'               # random numbers of the device are part of their losses
    makers = {n:m for n,m in ssl_methods().items() if n not in draws}
    if t.smoke: makers = {n:makers[n] for n in ('fixmatch','freematch')}
    modes = dict(fp32=[], channels_last=[ChannelsLastModel])
    if cuda: modes.update(bf16=[partial(MixedPrecision, 'bf16')], fp16=[partial(MixedPrecision, 'fp16', init_scale=2.**8)])      # the default, 2¹⁶, skips the first steps
    bounds = dict(fp32=1e-3, channels_last=1e-3, bf16=5e-2, fp16=2e-2)
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    wants = {n:recorded(make, torch.device('cpu')) for n,make in makers.items()}
    for mode,cbs in modes.items():
        worst,which = 0.,''
        for name,make in makers.items():
            try: got = recorded(make, device, [cb() for cb in cbs])
            except Exception as e:
                t.row(f'{mode}, {name}', 'FAILED', '', f'{type(e).__name__}: {str(e)[:150]}')
                continue
            for k,want in wants[name].items():
                if not k.endswith('loss'): continue
                diff = float(((got[k]-want).abs()/(want.abs()+.1)).max())
                if not diff<=worst: worst,which = diff,f'{name}.{k}'
        t.row(f'{mode}: largest difference of a loss, {len(makers)} methods', worst, '', f'{which}; bound {bounds[mode]}'+('' if worst<=bounds[mode] else ' EXCEEDED'))
    torch.backends.cudnn.allow_tf32 = tf32

# ------ (b) the step

class WideBlock(nn.Module):
    def __init__(self, ni, nf, stride):
        super().__init__()
        self.n1,self.n2 = nn.BatchNorm2d(ni),nn.BatchNorm2d(nf)
        self.c1,self.c2 = nn.Conv2d(ni, nf, 3, stride, 1, bias=False),nn.Conv2d(nf, nf, 3, 1, 1, bias=False)
        self.short = None if ni==nf and stride==1 else nn.Conv2d(ni, nf, 1, stride, bias=False)
    def forward(self, x):
        y = F.leaky_relu(self.n1(x), .1)
        x = x if self.short is None else self.short(y)
        return x+self.c2(F.leaky_relu(self.n2(self.c1(y)), .1))

def wide_resnet(depth=28, width=2, n_out=10, c=3):
    "The network of the FixMatch paper; 1.5 million parameters with the defaults"
    n,nfs = (depth-4)//6,[16, *(16*width*2**i for i in range(3))]
    blocks = [WideBlock(nfs[i] if j==0 else nfs[i+1], nfs[i+1], 2 if i and j==0 else 1) for i in range(3) for j in range(n)]
    return nn.Sequential(nn.Conv2d(c, 16, 3, 1, 1, bias=False), *blocks, nn.BatchNorm2d(nfs[-1]), nn.LeakyReLU(.1),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(nfs[-1], n_out))

def images(t, n, data):
    "`n` images of 32 px and labels: of the archive, or random"
    if data is None: return np.random.default_rng(0).integers(0, 256, (n,32,32,3), dtype=np.uint8),np.arange(n)%10
    sys.path.insert(0, str(Path(__file__).parent))
    from methods import archive
    X,y,_ = archive(data, n, 0)
    return X,y

def cifar_like(X, y, bs, uratio, n_steps, n_valid=100, per_class=4, **kw):
    "Data with `per_class` labels per class; the first `n_valid` images are held out"
    test,rest = slice(n_valid),slice(n_valid, None)
    known = np.full(len(y[rest]), -1)
    lab,_ = few_labels(y[rest], n_per_class=per_class, seed=0)
    known[lab] = y[rest][lab]
    return SSLDataLoaders.from_arrays(X[rest], known, valid=(X[test],y[test]), bs=bs, val_bs=1000, uratio=uratio, n_steps=n_steps, seed=0,
                                      labels=y[rest][known<0], vocab=list(range(10)), device=device,
                                      batch_tfms=[RandomCropFlip(), Normalize.from_stats(*cifar_stats, cuda=cuda)], **kw)

class Loop:
    "FixMatch by hand: draws and views of the library, then one function of static shapes: forward, losses, backward, optimizer, EMA"
    def __init__(self, dls, net, dtype=None, last=False, compile=None, graph=False):
        store_attr()
        self.views,self.pool = dls.view_maker,dls.pool
        self.net = net.to(device).train()
        if last: self.net.to(memory_format=torch.channels_last)
        self.opt = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=.9, nesterov=True)
        self.averages = [p.detach().clone() for p in self.net.parameters()]
        self.forward = self.losses if compile is None else torch.compile(self.losses, **compile)
        self.captured = None
    def losses(self, x, y):
        out = self.net(x)
        n,m = self.n,self.m
        weak,strong = out[n:n+m].detach(),out[n+m:]
        conf,label = weak.float().softmax(1).max(1)
        return F.cross_entropy(out[:n].float(), y)+(F.cross_entropy(strong.float(), label, reduction='none')*(conf>=.95)).mean()
    def draw(self):
        rows,(u,*_) = self.pool.labeled_rows,self.pool.tensors
        i = torch.randint(len(rows[0]), (self.dls.train.bs,), device=device)
        j = torch.randint(self.pool.n, (self.pool.bs,), device=device)
        l,u,y = rows[0].to(device)[i],u[j],rows[1].to(device).as_subclass(Tensor)[i]
        parts = [self.views('weak', (l,))[0], self.views('weak', (u,))[0], self.views('strong', (u,))[0]]
        self.n,self.m = len(l),len(u)
        x = torch.cat([o.as_subclass(Tensor) for o in parts])
        return (x.contiguous(memory_format=torch.channels_last) if self.last else x),y
    def work(self, x, y):
        with torch.autocast(device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None, cache_enabled=not self.graph):
            loss = self.forward(x, y)
        loss.backward()
        self.opt.step()
        self.opt.zero_grad(set_to_none=not self.graph)
        with torch.no_grad(): torch._foreach_lerp_(self.averages, [p.detach() for p in self.net.parameters()], .001)
        return loss
    def capture(self):
        "Record `work` on static inputs as one CUDA graph"
        self.x,self.y = self.draw()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3): self.work(self.x, self.y)
        torch.cuda.current_stream().wait_stream(side)
        self.captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.captured): self.loss = self.work(self.x, self.y)
    def step(self):
        x,y = self.draw()
        if not (self.graph and cuda): return self.work(x, y)
        if self.captured is None: self.capture()
        self.x.copy_(x)
        self.y.copy_(y)
        self.captured.replay()
        return self.loss

def roofline(net, n_grad, n_plain, size=32):
    "FLOPs of a step, and the bytes that its convolutions read and write in bf16 if all else is fused into them"
    from torch.utils.flop_counter import FlopCounterMode
    net,moved,flops = deepcopy(net).to(device),[],[]
    def count(m, xs, out): moved.append(2*(xs[0].numel()+out.numel()))
    for m in net.modules():
        if isinstance(m, nn.Conv2d): m.register_forward_hook(count)
    x = torch.randn(8, 3, size, size, device=device)
    with FlopCounterMode(display=False) as c: net(x).sum().backward()
    both = c.get_total_flops()/8
    per_row = sum(moved)/8
    with torch.no_grad(), FlopCounterMode(display=False) as c: net(x)
    forward = c.get_total_flops()/8
    # a backward pass reads the gradient of the output twice and the input once, and writes the gradient of the input
    return n_grad*both+n_plain*forward,(n_grad*3+n_plain)*per_row

def machine_limits():
    "FLOP/s of a large matrix product in bf16, and bytes/s of a copy, as measured here"
    n,m = (8192,2**30) if cuda else (512,2**24)
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    b = torch.empty(m, dtype=torch.uint8, device=device)
    other = torch.empty_like(b)
    return 2*n**3/(1e-3*milliseconds(lambda: a@a, 10)),2*m/(1e-3*milliseconds(lambda: other.copy_(b), 10))

def calls(f):
    "Operators, kernel launches and waits for the device in one call of `f`, counted by the profiler"
    from torch.profiler import profile, ProfilerActivity
    f()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as p:
        f()
        wait()
    seen = Counter()
    for e in p.key_averages():
        if e.key.startswith('aten::'): seen['operators'] += e.count
        if e.key in ('cudaLaunchKernel','cudaLaunchKernelExC','cuLaunchKernel','cuLaunchKernelEx'): seen['kernel launches'] += e.count
        if e.key in ('cudaStreamSynchronize','cudaDeviceSynchronize','cudaEventSynchronize','cudaMemcpy'): seen['waits'] += e.count
        if e.key=='aten::_local_scalar_dense': seen['numbers read from tensors'] += e.count
    return seen

def check_step(t, data):
    bs,uratio,n = (8,2,2) if t.smoke else (64,7,60)
    net = wide_resnet(10, 1) if t.smoke else wide_resnet()
    X,y = images(t, 400 if t.smoke else 8000, data)
    dls = cifar_like(X, y, bs, uratio, n, per_class=max(4, bs//10+1))
    name = f'FixMatch {bs}+{bs*uratio}+{bs*uratio}'
    flops,moved = roofline(net, bs+bs*uratio, bs*uratio)
    peak,bandwidth = machine_limits()
    bound = 1e3*max(flops/peak, moved/bandwidth)
    t.row('matrix product', peak/1e12, 'TFLOP/s')
    t.row('memory', bandwidth/1e9, 'GB/s')
    t.row(f'{name}: FLOPs alone', 1e3*flops/peak, 'ms')
    t.row(f'{name}: roofline of the fused step in bf16', bound, 'ms', f'{moved/2**20:.0f} MiB moved')
    half = torch.bfloat16
    compiled = dict(backend='eager') if t.smoke else dict(mode='default')
    loops = {'by hand, float32':{}, 'by hand, bf16':dict(dtype=half), 'by hand, bf16, channels_last':dict(dtype=half, last=True)}
    loops['by hand, bf16, channels_last, torch.compile'] = dict(dtype=half, last=True, compile=compiled)
    loops['by hand, bf16, channels_last, CUDA graph'] = dict(dtype=half, last=True, graph=True)
    loops['by hand, bf16, channels_last, compile and graph'] = dict(dtype=half, last=True, compile=compiled, graph=True)
    if t.smoke: loops = dict(list(loops.items())[::3])
    by_hand = {}
    for what,kw in loops.items():
        if cuda: torch.cuda.reset_peak_memory_stats()
        try:
            loop = Loop(dls, deepcopy(net), **kw)
            by_hand[what] = ms = milliseconds(loop.step, n)
            memory = f', {torch.cuda.max_memory_allocated()/2**20:.0f} MiB' if cuda else ''
            t.row(f'{name}, {what}', ms, 'ms', f'{bound/ms:.0%} of the roofline{memory}, loss {float((loop.loss if loop.captured else loop.step()).detach()):.3f}')
        except Exception as e: t.row(f'{name}, {what}', 'FAILED', '', f'{type(e).__name__}: {str(e)[:200]}')
    for k,v in calls(Loop(dls, deepcopy(net)).step).items(): t.row(f'by hand, float32: {k} per step', v)
    modes = {'float32':[]}
    if cuda: modes.update({'bf16':[partial(MixedPrecision, 'bf16')], 'bf16, channels_last':[partial(MixedPrecision, 'bf16'), ChannelsLastModel]})
    for what,cbs in modes.items():
        if cuda: torch.cuda.reset_peak_memory_stats()
        learn = ssl_learner(dls, deepcopy(net), cbs=[FixMatchCallback(.95), EMACallback(.999), *(cb() for cb in cbs)], forward='joint')
        learn.dls.valid.n = 1
        def fit():
            with quiet(learn): learn.fit(1, 1e-3)
        ms = milliseconds(fit, 1 if t.smoke else 2, 0 if t.smoke else 1)/n
        hand = by_hand.get(f'by hand, {what}')
        memory = f', {torch.cuda.max_memory_allocated()/2**20:.0f} MiB' if cuda else ''
        t.row(f'{name}, fastssl, {what}', ms, 'ms', f'{bound/ms:.0%} of the roofline{memory}')
        if hand: t.row(f'{name}, {what}: fastssl in fastai\'s loop, over by hand', ms/hand, 'ratio', f'{ms-hand:.2f} ms more')
        if what=='float32':
            dls.pool.n_steps = 2
            short = calls(fit)
            dls.pool.n_steps = 6
            long = calls(fit)
            dls.pool.n_steps = n
            for k in long: t.row(f'fastssl, float32: {k} per step', (long[k]-short[k])/4)

# ------ (b) the recorded step

def try_capture(f, n=20):
    "Milliseconds of a replay of `f` in a CUDA graph of its own, or its error"
    graph,side = torch.cuda.CUDAGraph(),torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3): f()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph): f()
    return milliseconds(graph.replay, n)

def check_pieces_of_graph(t, dls, n):
    "Which parts of a step can be captured, and what do they take then?"
    raw,x = (dls.pool.tensors[0][:n],),dls.pool.tensors[0][:n].as_subclass(Tensor)
    augment,views = BatchRandAugment(2),dls.view_maker
    def static(f):
        def _f():
            with StaticStep(device).recording(): return f()
        return _f
    pieces = dict(randperm=lambda: torch.randperm(n, device=device), argsort=lambda: torch.rand(n, device=device).argsort(),
                  RandomCropFlip=lambda: RandomCropFlip().augment(x), RandAugment=static(lambda: augment.augment(x)),
                  RandAugment_uneven=static(lambda: augment.augment(x[:-3])), Cutout=lambda: Cutout().augment(x),
                  weak=static(lambda: views('weak', raw)), strong=static(lambda: views('strong', raw)))
    for name,f in pieces.items():
        f()
        try: t.row(f'{n} images, {name} in a graph', try_capture(f), 'ms')
        except Exception as e: t.row(f'{n} images, {name} in a graph', 'FAILED', '', f'{type(e).__name__}: {str(e)[:200]}')

class Watch(Callback):
    "Time of steady steps, and what the profiler sees in three of them"
    order,run_valid = math.inf,False
    def __init__(self, start, n, profile=False): store_attr(but='profile'); self.with_profile = profile
    def before_train(self):
        self.i,self.prof,self.host = 0,None,0.
        self.begin = time.perf_counter()
    def after_batch(self):
        self.i += 1
        if self.i==self.start:
            wait()
            self.first = time.perf_counter()-self.begin
            self.t = time.perf_counter()
        if self.i==self.start+self.n:
            self.host = 1e3*(time.perf_counter()-self.t)/self.n
            wait()
            self.ms = 1e3*(time.perf_counter()-self.t)/self.n
            graph = getattr(getattr(self.learn, 'graph_step', None), 'recording', None)
            self.replay = milliseconds(graph.replay, 20) if graph else None
            if self.with_profile: self.prof = profiler()
            if self.prof: self.prof.__enter__()
        if self.prof and self.i==self.start+self.n+3:
            wait()
            self.prof.__exit__(None, None, None)
            self.seen = kernels(self.prof, 3)
            self.prof = None

def profiler():
    from torch.profiler import profile, ProfilerActivity
    return profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])

def kernels(prof, steps):
    "Per step: kernels, time in which they ran, and the ten that took longest as (ms, times, name); operators in place of kernels on the CPU"
    from torch.autograd import DeviceType
    per = Counter(),Counter()
    for e in prof.events():
        if (e.device_type==DeviceType.CUDA)!=cuda or (not cuda and not e.name.startswith('aten::')): continue
        per[0][e.name] += e.device_time if cuda else e.self_cpu_time_total
        per[1][e.name] += 1
    top = [(round(us/1e3/steps, 3), round(per[1][name]/steps, 1), name[:110]) for name,us in per[0].most_common(14)]
    return dict(kernels=round(sum(per[1].values())/steps), busy_ms=round(sum(per[0].values())/1e3/steps, 3), top=top)

def report_kernels(t, what, seen):
    t.row(f'{what}: kernels per step', seen['kernels'], '', f"they run for {seen['busy_ms']} ms")
    for ms,times,name in seen['top']: t.row(f'{what}: {times:g} ×', ms, 'ms', name)

def waits_of(fit):
    "Lines of Python where a fit waits for the device, most frequent first"
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter('always')
            fit()
    finally: torch.cuda.set_sync_debug_mode('default')
    where = Counter(f'{Path(w.filename).name}:{w.lineno}' for w in seen if 'synchroniz' in str(w.message))
    return where.most_common(12)

def check_equal(t):
    "Largest difference between recorded and eager steps, for every method that can be recorded"
    names = ('fixmatch','freematch','flexmatch','softmatch','adamatch','uda','pseudolabel','meanteacher','pimodel',
             'selfensemble','mcc','defixmatch','dash')
    methods = {k:v for k,v in ssl_methods().items() if k in names[:2 if t.smoke else None]}
    worst,which,steps = 0.,'',(4 if t.smoke else 8)
    for name,make in methods.items():
        def run(graph):
            set_seed(0)
            dls = digits_dls(bs=14 if cuda else 10, uratio=2, n_steps=steps, seed=0, device=device)      # on a GPU, 14 ops are drawn on the CPU unless all are as frequent
            dls.pool.fake_l.generator = torch.Generator()
            set_seed(1)
            dls.train.rng = random.Random(1)
            learn = ssl_learner(dls, tiny_cnn(nf=8), cbs=[make(), EMACallback(.9)], opt_func=partial(SGD, mom=.9))
            if graph: learn.add_cb(GraphStep(make=CUDARecording if cuda else None))
            set_seed(2)
            with quiet(learn): learn.fit_one_cycle(1, 1e-2)
            return learn
        try:
            a,b = run(False),run(True)
            for k,want in a.recorder.ssl.items():
                if not k.endswith('loss'): continue
                x,y = torch.tensor(want).nan_to_num(),torch.tensor(b.recorder.ssl[k]).nan_to_num()
                diff = float(((x-y).abs()/(x.abs()+.1)).max())
                if not diff<=worst: worst,which = diff,f'{name}: {k}'
        except Exception as e: t.row(f'{name}, recorded', 'FAILED', '', f'{type(e).__name__}: {str(e)[:300]}')
    t.row(f'largest difference of a recorded value, {len(methods)} methods, {steps} steps', worst, '', f'{which}; bound 1e-3'+('' if worst<=1e-3 else ' EXCEEDED'))

def check_graph(t, data):
    bs,uratio,n = (14,2,3) if t.smoke else (64,7,60)
    X,y = images(t, 400 if t.smoke else 8000, data)
    dls = cifar_like(X, y, bs, uratio, n+13, per_class=max(4, bs//10+1))
    name = f'{bs}+{bs*uratio}+{bs*uratio}'
    net = wide_resnet(10, 1) if t.smoke else wide_resnet()
    def learner(forward='separate', graph=None, compile=False):
        cbs = [MixedPrecision('bf16'), ChannelsLast()] if cuda else []
        learn = ssl_learner(dls, deepcopy(net), cbs=[FixMatchCallback(.95), EMACallback(.999), *cbs], forward=forward, opt_func=partial(SGD, mom=.9))
        learn.dls.valid.n = 1
        if graph: learn.add_cb(GraphStep(compile, make=CUDARecording if cuda and graph=='cuda' else None))
        return learn
    if cuda:
        for what,graph in (('eager',None),('static, not recorded','static')):
            dls.pool.n_steps = 6
            learn = learner(graph=graph)
            def fit():
                with quiet(learn): learn.fit(1, 1e-3)
            fit()
            for where,times in waits_of(fit): t.row(f'{what}: waits for the device at {where} in 6 steps', times)
        dls.pool.n_steps = n+13
    check_equal(t)
    rows = {'eager, separate':{}, 'to_graph, separate':dict(graph='cuda'), 'to_graph, joint':dict(graph='cuda', forward='joint'),
            'eager, joint':dict(forward='joint'), 'to_graph + compile, joint':dict(graph='cuda', forward='joint', compile=True),
            'to_graph + compile, separate':dict(graph='cuda', compile=True)}
    if t.smoke: rows = dict(list(rows.items())[:2])
    start = time.time()
    for what,kw in rows.items():
        if time.time()-start>(15 if t.smoke else 60):
            t.row(f'{what}: skipped', 0)
            continue
        try:
            if cuda: torch.cuda.reset_peak_memory_stats()
            learn,watch = learner(**kw),Watch(2 if t.smoke else 10, n-2 if t.smoke else n, profile=what!='eager, joint')
            with quiet(learn): learn.fit(1, 1e-3, cbs=watch)
            memory = f', {torch.cuda.max_memory_allocated()/2**20:.0f} MiB' if cuda else ''
            replay = '' if watch.replay is None else f', a replay alone {watch.replay:.2f} ms'
            t.row(f'{name}, library, {what}', watch.ms, 'ms', f'Python {watch.host:.2f} ms{replay}, first steps {watch.first:.1f} s{memory}, loss {float(learn.recorder.losses[-1]):.3f}')
            if watch.with_profile: report_kernels(t, what, watch.seen)
            t.profiles[what] = watch.seen if watch.with_profile else None
        except Exception as e:
            t.row(f'{name}, library, {what}', 'FAILED', '', f'{type(e).__name__}: {str(e)[:400]}')
            t.failed[f'graph: {what}'] = traceback.format_exc()
        if cuda: torch.cuda.empty_cache()
    if cuda: check_pieces_of_graph(t, dls, bs*uratio)

# ------ (b) views, EMA, loaders

def check_pieces(t, data):
    n,reps = (32,2) if t.smoke else (448,30)
    X,y = images(t, 200 if t.smoke else 4000, data)
    dls = cifar_like(X, y, 8, n//8, 1)
    raw = (dls.pool.tensors[0][:n],)
    for view in ('weak','strong'): t.row(f'{n} images of 32 px, {view} view', milliseconds(lambda: dls.view_maker(view, raw), reps), 'ms')
    net = (wide_resnet(10, 1) if t.smoke else wide_resnet()).to(device)
    teacher = EMATeacher(net, .999, buffers='copy')
    t.row(f'EMA of {len(list(net.parameters()))} tensors', milliseconds(teacher.update, reps), 'ms')
    memory = dls.pool.forever()
    t.row(f'batch of {n} images from memory', milliseconds(lambda: next(memory), reps), 'ms')
    with tempfile.TemporaryDirectory() as d:
        for i,x in enumerate(X[:64+4*n]): Image.fromarray(x).save(f'{d}/{i}.jpg')
        files = get_image_files(d)
        block = DataBlock((ImageBlock, CategoryBlock(vocab=[0,1])), get_y=_parity)
        for workers in (0, min(8, os.cpu_count())):
            if t.smoke and workers: continue
            small = block.dataloaders(files[:64], bs=32, num_workers=workers, device=device)
            stream = small.add_unlabeled(files[64:], bs=n).unlabeled.forever()
            t.row(f'batch of {n} images from JPEG files, {workers} workers', milliseconds(lambda: next(stream), max(2, reps//5), 1), 'ms')
            stream.close()
def _parity(f): return int(f.stem)%2

# ------ (c) it learns

class Curve(Callback):
    "Accuracy after each epoch"
    order = Recorder.order+1
    def before_fit(self): self.values = []
    def after_epoch(self):
        column = self.recorder.metric_names[1:].index('accuracy')       # without 'epoch'
        self.values.append(round(100*float(self.recorder.values[-1][column]), 1))

def check_learns(t, data):
    epochs,steps = (2,10) if t.smoke else (10,100)
    if data is None:
        mk = lambda: digits_dls(n_steps=steps, uratio=4, device=device, seed=0)
        net,lr = (lambda: tiny_cnn(nf=8 if t.smoke else 32)),2e-2
    else:
        X,y = images(t, 50000, data)
        mk = lambda: cifar_like(X, y, 64, 7, steps, n_valid=5000, per_class=25)
        net,lr = (lambda: wide_resnet(16, 2)),1e-2
    final = {}
    for name,make in dict(supervised=SSLStep, fixmatch=lambda: FixMatchCallback(.95)).items():
        set_seed(0)
        curve = Curve()
        amp = [MixedPrecision('bf16'), ChannelsLastModel()] if cuda else []
        start = time.time()
        learn = ssl_learner(mk(), net(), metrics=accuracy, cbs=[*L(make()), EMACallback(), curve, *amp])
        with quiet(learn): learn.fit_one_cycle(epochs, lr)
        final[name] = curve.values[-1]
        t.row(f'{name}: accuracy after {epochs*steps} steps', final[name], '%', f'each epoch: {curve.values}; {time.time()-start:.0f} s')
    t.row('gain of the pool', final['fixmatch']-final['supervised'], 'points')

# ------ (d) the speedrun

def check_speedrun(t, data):
    sys.path.insert(0, str(Path(__file__).parent))
    import speedrun
    splits = [200] if t.smoke else [200, 201, 202]
    runs = [speedrun.run(split, 0, device, **(dict(steps=5) if t.smoke else {})) for split in splits]
    t.row(f'digits, 4 labels per class, {len(runs)} splits: accuracy', np.mean([acc for acc,_ in runs]), '%', f'each: {[round(acc, 1) for acc,_ in runs]}')
    t.row('digits: seconds of a run', np.mean([s for _,s in runs]), 's')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', help='archive of CIFAR-10')
    p.add_argument('--out', help='JSON file to write')
    p.add_argument('--minutes', type=float, default=8)
    p.add_argument('--only', default='pieces,precision,cells,step,graph,learns,speedrun')
    p.add_argument('--smoke', action='store_true', help='on the CPU, small')
    p.add_argument('--notebook', help='run the cells of one notebook, and nothing else')
    a = p.parse_args()
    if a.notebook:
        passed,n,failed = run_notebook(a.notebook)
        print('\n'.join(f'FAILED {o}' for o in failed))
        print(f'{passed} of {n} cells for a GPU pass, {len(failed)} cells fail')
        return int(passed<n or bool(failed))
    if a.smoke: torch.set_num_threads(1)
    parts = dict(cells=check_cells, precision=check_precision, step=partial(check_step, data=a.data),
                 graph=partial(check_graph, data=a.data), pieces=partial(check_pieces, data=a.data),
                 learns=partial(check_learns, data=a.data), speedrun=partial(check_speedrun, data=a.data))
    t = Table(a.out and Path(a.out), a.minutes, a.smoke)
    for part in a.only.split(','):
        check_one_of(part, list(parts), '--only')
        t.run(part, parts[part])
    bad = [f"{r['part']}: {r['what']}" for r in t.rows if r['value']=='FAILED' or r['what'].startswith('FAILED')]
    print(f'{len(bad)} failed{": " if bad else ""}{"; ".join(bad)}; {time.time()-t.start:.0f} s')
    for part,trace in t.failed.items(): print(f'--- {part}', *L(trace), sep='\n', file=sys.stderr)
    return int(bool(bad))

if __name__=='__main__': sys.exit(main())
