"CPU seconds and memory of what is linear in the size of the pool: `python benchmarks/scale.py --linear [MILLIONS]`, each in a process of its own"
import subprocess, sys, tempfile, time, warnings
warnings.simplefilter('ignore')

def parts(n):
    "Name → (items, function that makes the arguments, function that is measured)"
    import numpy as np, pandas as pd
    from fastai.vision.all import ColReader, ItemGetter, Path
    from fastssl.data.splits import few_labels
    from fastssl.data.constructors import SSLDataLoaders
    from fastssl.data.hidden_labels import hidden_labels
    from fastssl.distill.keys import ItemKey, unique_keys
    from fastssl.distill.store import SoftTargets
    from fastssl.distill.write import StoreWriter
    def paths(as_type, n): return [as_type(f'/data/train/n{i%1000:08d}/n{i%1000:08d}_{i}.JPEG') for i in range(n)]
    def keyed(items): return unique_keys(items, ItemKey.of(items))
    def store(n):
        items = paths(str, n)
        w = StoreWriter(Path(tempfile.mkdtemp())/'s', unique_keys(items, ItemKey('parts:2'))[0], ItemKey('parts:2'), [0,1], dtype='float16')
        for i in range(0, n, 10000): w.write(np.zeros((min(10000, n-i), 2))-i%7)
        w.close()
        soft = SoftTargets.load(w.path)
        return soft,items
    def shuffled(soft, items): return soft,[items[i] for i in np.random.default_rng(0).permutation(len(items))]
    def arrays(n):
        y = np.full(n, -1)
        y[:100] = np.arange(100)%10
        return np.zeros((n,8,8), np.uint8),y
    def table(n): return pd.DataFrame(dict(file=[f'{i}.png' for i in range(n)], label=[f'c{i%10}' for i in range(n)]))
    k = n//10
    return {
        'keys of strings': (n, lambda: paths(str, n), keyed),
        'keys of strings, a folder each': (n, lambda: [f'/data/{i}/image.jpg' for i in range(n)], keyed),
        'keys of paths': (n, lambda: paths(Path, n), keyed),
        'keys of paths, a folder each': (n, lambda: [Path(f'/data/{i}/image.jpg') for i in range(n)], keyed),
        '`SoftTargets.check`': (n, lambda: store(n), lambda o: o[0].check(o[1])),
        '`SoftTargets.check`, shuffled items': (n, lambda: shuffled(*store(n)), lambda o: o[0].check(o[1])),
        '`from_arrays`': (n, lambda: arrays(n), lambda o: SSLDataLoaders.from_arrays(*o, bs=16)),
        '`from_arrays(in_memory=False)`': (n, lambda: arrays(n), lambda o: SSLDataLoaders.from_arrays(*o, bs=16, in_memory=False)),
        '`few_labels` of a table by `ColReader`': (k, lambda: table(k), lambda df: few_labels(df, ColReader('label'))),
        '`hidden_labels` of a table by `ColReader`': (k, lambda: table(k), lambda df: hidden_labels(ColReader('label'), df, [f'c{i}' for i in range(10)]))}

def measure(name, n):
    "(items, CPU seconds, MiB that the call added at its peak)"
    import resource
    items,make,call = parts(n)[name]
    args = make()
    def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    from psutil import Process
    before = Process().memory_info().rss/2**20
    high = peak()
    t = time.process_time()
    res = call(args)
    t = time.process_time()-t
    return items, t, max(peak()-max(high, before), Process().memory_info().rss/2**20-before)

if __name__=='__main__':
    numbers = [a for a in sys.argv[1:] if not a.startswith('-')]
    if '--one' in sys.argv: print('{} {} {}'.format(*measure(numbers[0], int(numbers[1]))))
    else:
        n = int(1e6*float(numbers[0])) if numbers else 10**6
        print('| | items | CPU s | MiB | CPU s per 10⁶ |\n|---|---|---|---|---|')
        for name in parts(n):
            res = subprocess.run([sys.executable, __file__, '--one', name, str(n)], capture_output=True, text=True)
            if res.returncode: sys.exit(res.stderr)
            items,t,mib = map(float, res.stdout.split()[-3:])
            print(f'| {name} | {items:,.0f} | {t:.2f} | {mib:.0f} | {t*1e6/items:.2f} |', flush=True)
