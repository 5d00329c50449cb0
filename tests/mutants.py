"""Would the tests notice? Puts one fault at a time into a copy of the package and runs the module's notebook, then its tests in `tests/`

    python tests/mutants.py [MODULE …]          # such as losses.semi; default: all

Prints a line per fault (noticed by the notebook, by pytest, or survived) and the share noticed per module. The exit status is 1 if
less than 85 % are noticed, or if a fault survives without a reason why it changes nothing. It is neither part of CI nor collected by
pytest; `tests/test_mutants.py` checks that each fault still applies.
"""
import argparse, json, os, re, shutil, signal, sys, tempfile, time, traceback
from collections import namedtuple
from functools import partial
from pathlib import Path

root = Path(__file__).resolve().parents[1]
least = .85                     # share of the faults that must be noticed
limit = 600                     # seconds for a notebook or a run of pytest; one that takes longer has noticed the fault

losses = 'test_losses_property.py','test_losses_contract.py','test_reference.py'
methods = 'test_methods_by_hand.py','test_compose.py'
callbacks = 'test_compose.py','test_cleanup.py'
module_tests = {                # run where the notebook does not notice a fault
    'core': (*losses, 'test_methods_by_hand.py'), 'files': ('test_bad_input.py',), 'schedules': ('test_reference.py',),
    'losses.adapt': losses, 'losses.adversarial': losses, 'losses.distill': losses, 'losses.keypoint': losses,
    'losses.metric': losses, 'losses.rows': ('test_methods_by_hand.py',), 'losses.semi': losses,
    'distill.losses': ('test_soft_targets.py','test_targets.py'),
    'training.autocast': ('test_compose.py',), 'training.self_distillation': ('test_compose.py',),
    'training.callback': callbacks, 'training.events': callbacks, 'training.batch': methods, 'training.ema': callbacks,
    'training.ema_teacher': callbacks, 'training.method': (*methods, 'test_cleanup.py'),
    'training.compatible': methods, 'training.step': (*methods, 'test_cleanup.py'),
    'semi.alignment': methods, 'semi.threshold': methods, 'semi.consistency': methods, 'semi.fixmatch': methods,
    'semi.flexmatch': methods, 'semi.adaptive': methods,
}

# exact text, its replacement, what is wrong then, and why it changes nothing if no test can notice it
Fault = namedtuple('Fault', 'old new why equivalent', defaults=(None,))
faults = {
'core': [
    Fault('return x.float() if x.dtype in _half else x', 'return x.float() if x.is_floating_point() else x',
          'float64 is narrowed to float32'),
    Fault('if type(x) is not Tensor and type(x) is not nn.Parameter: x = x.as_subclass(Tensor)', '', "fastai's types stay"),
    Fault('if kwargs: kwargs = {k:plain_float32(v) for k,v in kwargs.items()}', '', 'keyword arguments stay in half precision'),
    Fault('with torch.autocast(device, enabled=False): return f(*args, **kwargs)', 'return f(*args, **kwargs)', 'autocast stays on'),
    Fault('w = w.reshape(*w.shape, *[1]*(loss.ndim-w.ndim))', 'w = w.expand_as(loss)', 'weights belong to columns'),
    Fault("return loss.mean() if reduction=='mean' and loss.numel() else loss.sum()",
          "return loss.mean() if reduction=='mean' else loss.sum()", 'the mean of nothing is NaN'),
    Fault('mask = conf>=threshold if inclusive else conf>threshold', 'mask = conf>threshold', '> for >='),
    Fault('return p.detach().max(1)', 'return p.max(1)', 'the confidence has a gradient'),
    Fault('(logits if T==1 else logits/T).softmax(1)', 'logits.softmax(1)', 'the temperature of the confidence is ignored'),
    Fault('p.clamp(min=torch.finfo(p.dtype).tiny).log()', 'p.log()', '`sharpen` without its clamp: NaN where no class is left'),
    Fault("log()/check_positive(T, 'T')", "log()*check_positive(T, 'T')", '`sharpen` flattens'),
    Fault('return -(q*logits.log_softmax(1)).sum(1)', 'return -(q*logits.log_softmax(1)).mean(1)', 'cross-entropy divided by C'),
    Fault('scatter_add_(0, labels, weight)/max(len(labels), 1)', 'scatter_add_(0, labels, weight)/weight.sum().clamp(min=1e-6)',
          'shares sum to 1 whatever the weights'),
    Fault("torch.where(keep, rows, -1), 'amax')", "torch.where(keep, rows, -1), 'amin')", 'the first row of a slot wins'),
    Fault('scratch.scatter_(0, slot, -1)', 'pass', 'the scratch buffer is not reset'),
    Fault('for m,mode in modes: m.training = mode', 'model.train(modes[0][1])', 'frozen parts train after `in_mode`'),
],
'files': [
    Fault('os.replace(part, path)', 'shutil.copy(part, path)', 'a file is not replaced in one operation'),
    Fault('finally: part.unlink(missing_ok=True)', 'finally: pass', 'a failed write leaves its temporary file'),
],
'schedules': [
    Fault('min(max(current_epoch, 0), warm_up_epochs)', 'min(current_epoch, warm_up_epochs)', 'progress below 0'),
    Fault('min(max(current_epoch, 0), warm_up_epochs)', 'max(current_epoch, 0)', 'the ramp falls after its end'),
    Fault('if warm_up_epochs==0: return 1.', 'if warm_up_epochs==0: return 0.', 'no ramp gives weight 0'),
    Fault('return start+(end-start)*sigmoid_warm_up(p, pct)', 'return end*sigmoid_warm_up(p, pct)', 'the start of a ramp is ignored'),
    Fault('return min(.999, max(.9, 1-10/max(n_steps, 1)))', 'return max(.9, 1-10/max(n_steps, 1))', 'no upper limit of the decay'),
    Fault('return min(.999, max(.9, 1-10/max(n_steps, 1)))', 'return min(.999, 1-10/max(n_steps, 1))', 'no lower limit of the decay'),
    Fault('decay = np.maximum(0, np.cos(np.pi*num_cycles*pos))', 'decay = np.cos(np.pi*num_cycles*pos)', 'negative learning rates'),
    Fault('pos = (step-num_warmup_steps)/(T_max-num_warmup_steps or 1)', 'pos = step/T_max', 'the warm-up is part of the cosine'),
    Fault('np.where(step<num_warmup_steps, warmup, decay)', 'np.where(step<=num_warmup_steps, warmup, decay)', '<= for <'),
    Fault('**-lr_decay', '**-.75', 'the exponent is ignored'),
    Fault('return functools.partial(_at_pct, factor, lr, n_steps)', 'return functools.partial(_at_pct, factor, lr, 1.)',
          'the length of the run is ignored'),
],
'losses.semi': [
    Fault("return reduced(F.cross_entropy(y, labels, reduction='none')*mask)",
          "return (F.cross_entropy(y, labels, reduction='none')*mask).sum()/mask.sum().clamp(min=1)", 'mean over the selected rows only'),
    Fault('labels,mask,_ = pseudo_label(y_target, self.threshold)',
          'labels,mask,_ = pseudo_label(y_target, self.threshold, inclusive=True)', '>= for >'),
    Fault('return masked_cross_entropy(y, labels, mask), mask, labels',
          'return masked_cross_entropy(y.detach(), labels, mask), mask, labels', 'the student is detached'),
    Fault('return (p1-p2).square().sum(1)', 'return (p1-p2).square().mean(1)', 'mean over classes'),
    Fault('return (p1-p2).square().sum(1)', 'return (p1-p2.detach()).square().sum(1)', 'one side of the Π model does not learn'),
    Fault("return reduced(weighted(self.distance_measure(p1, p2), mask, 'mask'), self.reduction)",
          'return reduced(self.distance_measure(p1, p2), self.reduction)', 'the mask is ignored'),
    Fault("if distance=='kl': return F.kl_div(logits.log_softmax(1), target, reduction='none').sum(1)",
          "if distance=='kl': return soft_cross_entropy(logits, target)", 'cross-entropy instead of KL'),
    Fault("return l2 if distance=='l2' else l2/logits.shape[1]", 'return l2', "'mse' is not divided by C"),
    Fault('m = p.mean(0)', 'm = p.mean(0).detach()', 'class balance without gradient'),
    Fault('torch.full_like(m, 1/self.num_classes)', 'torch.full_like(m, .5)', 'another target of the class balance'),
    Fault('q = y.detach().softmax(1)', 'q = y.softmax(1)', 'the target of the strong/weak loss is not detached'),
    Fault('(y_strong/self.temperature)', '(y_strong.detach()/self.temperature)', 'the student of the strong/weak loss is detached'),
    Fault('(y_strong/self.temperature)', 'y_strong', 'the temperature of the strong/weak loss is ignored'),
    Fault('return (kl*mask).sum()/mask.sum().clamp(min=1)', 'return (kl*mask).sum()/mask.sum()', 'NaN where no row is selected'),
    Fault('return (kl*mask).sum()/mask.sum().clamp(min=1)', 'return (kl*mask).mean()', 'mean over all rows'),
    Fault('mask = confident_label(q, self.threshold)[1]', 'mask = confident_label(q, self.threshold, inclusive=True)[1]', '>= for >'),
    Fault('labels,mask,_ = pseudo_label(logits_w, p_cutoff, inclusive=True)', 'labels,mask,_ = pseudo_label(logits_w, p_cutoff)',
          '> for >='),
    Fault('labels,mask,_ = pseudo_label(logits_w, p_cutoff, inclusive=True)',
          'labels,mask,_ = pseudo_label(logits_w, p_cutoff, T, inclusive=True)', 'the temperature changes which rows are used'),
    Fault('q = (logits_w.detach()/T).softmax(1)', 'q = (logits_w/T).softmax(1)', 'the soft target is not detached'),
    Fault('lambda_u = 1. if original else .5', 'lambda_u = .5', 'another weight of the original objective'),
    Fault('if not original: sup = (sup+F.cross_entropy(logits_lb_s, y_lb))/2',
          'if not original: sup = sup+F.cross_entropy(logits_lb_s, y_lb)', 'the supervised terms are not averaged'),
    Fault('sup+lambda_u*(unsup-anti)', 'sup+lambda_u*unsup', 'the labeled term is not subtracted'),
],
'losses.adapt': [
    Fault('(predictions+1e-5).log()', 'predictions.log()', 'NaN at probability 0'),
    Fault('(-entropy(P.detach()))', '(-entropy(P))', 'the weight of a row has a gradient'),
    Fault('.exp().log1p()', '.log1p()', 'another weight of certain rows'),
    Fault('if keep is not None: logw', 'if False: logw', 'all rows count'),
    Fault('torch.where(keep | ~keep.any(), logw, -torch.inf)', 'torch.where(keep, logw, -torch.inf)', 'NaN where no row is kept'),
    Fault('logp = (logits/T).log_softmax(1)', 'logp = logits.log_softmax(1)', 'the temperature is ignored'),
    Fault('return ((1-P)*Q).sum()/logits.shape[1]', 'return ((1-P.detach())*Q).sum()/logits.shape[1]', 'half of the gradient is missing'),
    Fault('mask = pseudo_label(logits, self.thr, T=self.temperature, inclusive=True)[1]',
          'mask = pseudo_label(logits, self.thr, T=self.temperature)[1]', '> for >='),
    Fault('mask = pseudo_label(logits, self.thr, T=self.temperature, inclusive=True)[1]',
          'mask = pseudo_label(logits, self.thr, inclusive=True)[1]', 'confidence without temperature'),
    Fault('Pw,Qw = confusion_factors(logits.detach(),', 'Pw,Qw = confusion_factors(logits,', 'the weak view learns'),
    Fault('Ps,Qs = confusion_factors(logits_strong, self.temperature, mask.bool())',
          'Ps,Qs = confusion_factors(logits_strong, self.temperature)', 'the strong view counts rows that are not confident'),
    Fault('return gap/logits.shape[1]*ratio, ratio', 'return gap/logits.shape[1], ratio', 'the share of the rows is ignored'),
    Fault('(norm-norm.detach()-self.delta)', '(norm.detach()-norm-self.delta)', 'norms shrink'),
],
'losses.adversarial': [
    Fault('return reduced((predictions1-predictions2).abs())', 'return reduced((predictions1-predictions2).square())', 'squares'),
    Fault('return -(predictions.mean(0)+1e-6).log().mean()', 'return -predictions.mean(0).log().mean()',
          'infinite for a class without probability'),
    Fault('return (x+offset).clamp(max=1).log()', 'return (x+offset).log()', 'above 0 at x=1'),
    Fault("weighted(self.source_disparity(y_s, y_s_adv), w_s, 'w_s')", 'self.source_disparity(y_s, y_s_adv)', 'source weights are ignored'),
    Fault("weighted(self.target_disparity(y_t, y_t_adv), w_t, 'w_t')", 'self.target_disparity(y_t, y_t_adv)', 'target weights are ignored'),
    Fault('return torch.sub(reduced(target, self.reduction), reduced(source, self.reduction), alpha=self.margin)',
          'return self.margin*reduced(target, self.reduction)-reduced(source, self.reduction)', 'the margin weights the target'),
    Fault('y.detach().argmax(1, keepdim=True), 0.)', 'y_adv.detach().argmax(1, keepdim=True), 0.)',
          "the adversary's decision for the main head's"),
    Fault('self.loss_function(y_adv, y.detach(), reduction=', 'self.loss_function(y_adv, y, reduction=',
          'the main head learns from the adversary'),
    Fault('return -super().forward(y_l, y_l_adv, y_u, y_u_adv)', 'return super().forward(y_l, y_l_adv, y_u, y_u_adv)',
          'the worst case is maximized'),
    Fault('F.binary_cross_entropy(d_t, torch.zeros_like(d_t)', 'F.binary_cross_entropy(d_t, torch.ones_like(d_t)',
          'both domains are the source'),
    Fault("return total/2 if reduction=='mean' else total", 'return total', 'the domains are summed'),
],
'losses.metric': [
    Fault('f = features-features.mean(0)', 'f = features', 'distances of features far from 0 lose precision'),
    Fault('.fill_diagonal_(0)', '', 'the distance of a row to itself is not exactly 0',
          'it is 0 up to rounding, and a row is its own farthest positive only if all of them are as near'),
    Fault('positive = d.masked_fill(~same, -torch.inf).argmax(1)', 'positive = d.masked_fill(~same, torch.inf).argmin(1)',
          'the nearest positive'),
    Fault('negative = d.masked_fill(same, torch.inf).argmin(1)', 'negative = d.masked_fill(same, -torch.inf).argmax(1)',
          'the farthest negative'),
    Fault('.clamp(min=1e-12).sqrt()', '.sqrt()', 'NaN gradient of equal rows'),
    Fault('if self.normalize_feature: f = F.normalize(f, dim=1)', '', 'features are not normalized'),
    Fault('return reduced((gap+self.margin).relu()*ok)', 'return reduced((gap+self.margin).relu())', 'rows without a negative count'),
    Fault('return reduced((gap+self.margin).relu()*ok)', 'return reduced((gap+self.margin)*ok)', 'no hinge'),
    Fault('g = features_2.detach()', 'g = features_2', 'the teacher learns'),
    Fault('if self.normalize_feature: g = F.normalize(g, dim=1)', '', "the teacher's features are not normalized"),
    Fault('loss = -self.margin*l[:,0]-(1-self.margin)*l[:,1]', 'loss = -self.margin*l[:,1]-(1-self.margin)*l[:,0]',
          'positive and negative are swapped'),
    Fault('return reduced(loss*ok)', 'return reduced(loss)', 'soft loss of rows without a negative'),
],
'losses.rows': [
    Fault('inner = loss_func.func if isinstance(loss_func, BaseLoss) else loss_func', 'inner = loss_func',
          "class weights of fastai's losses are ignored"),
    Fault('weights[y.flatten().long()]', 'torch.ones_like(values)', 'the mean is divided by the number of rows'),
    Fault('total = total_of((weights*keep).sum())', 'total = total_of(weights.sum())', 'rows that do not count are in the divisor'),
    Fault('return (values*keep).sum()/total.where(total>0, 1.)', 'return (values*keep).sum()/total', 'NaN where no row counts'),
    Fault('total = total_of((weights*keep).sum())', 'total = (weights*keep).sum()', 'other processes are ignored'),
    Fault('label_smoothing=ce.label_smoothing, ', '', 'label smoothing is ignored'),
    Fault("if getattr(loss_func, 'reduction', 'mean')=='sum': return values", '', 'a sum is averaged'),
    Fault('return values/(len(q) if weights is None else (q*weights).sum())', 'return values/len(q)',
          'the class weights are missing in the divisor'),
    Fault('every = torch.arange(c, device=pred.device).repeat(n)', 'every = torch.arange(c, device=pred.device).repeat_interleave(n)',
          'classes and rows are mixed'),
],
'losses.keypoint': [
    Fault('target.detach().flatten(2)', 'target.flatten(2)', 'the target is not detached'),
    Fault('if w is not None and w.shape==(*like.shape, 1): return w.squeeze(-1)', '', 'weights (N, K, 1) are refused'),
    Fault('loss = (o-t).square()/2', 'loss = (o-t).square()', 'not half the square'),
    Fault("loss = loss.sum(-1) if self.reduction=='sum' else loss.mean(-1)", 'loss = loss.mean(-1)', "'sum' over maps, mean over pixels"),
    Fault('t = (t+self.epsilon).clamp_(min=0)', 't = t.clamp(min=0)', '`epsilon` is ignored'),
    Fault('t = (t+self.epsilon).clamp_(min=0)', 't = t+self.epsilon', 'negative pixels stay'),
    Fault('.clamp(min=torch.finfo(t.dtype).tiny)', '', 'an empty map gives NaN'),
    Fault("return loss.mean(-1) if self.reduction=='none' else reduced(loss, self.reduction)", 'return reduced(loss, self.reduction)',
          "'none' gives one value per keypoint"),
    Fault('(2*sigma**2)', '(2*sigma)', 'another width'),
    Fault('g*(d.abs()<=window)', 'g*(d.abs()<window)', '< for <='),
    Fault('if positive: at = torch.where(top>0, at, 0)', '', 'a map without a positive value'),
    Fault('centers = torch.stack([at%width, at//width], -1)', 'centers = torch.stack([at//width, at%width], -1)', 'x and y are swapped'),
    Fault('.clamp(0, 1)', '', 'ground false above 1'),
    Fault('gt = torch.where(gt>1e-2, gt, 0.)', '', 'tails of the Gaussian stay'),
    Fault('gt = gaussian_maps(y, self.sigma, 3*self.sigma, positive=True)', 'gt = gaussian_maps(y, self.sigma, positive=True)',
          'no window'),
    Fault('truth,false = self.pseudo_label_generator(y.detach())', 'truth,false = self.pseudo_label_generator(y)',
          'the generator sees the graph'),
    Fault("truth if mode=='min' else false", 'truth', "'max' approaches the ground truth"),
],
'losses.distill': [
    Fault('log_t = (y_teacher.detach()/T).log_softmax(-1)', 'log_t = (y_teacher/T).log_softmax(-1)', 'the teacher learns'),
    Fault("return reduced(kl, 'sum')/max(len(kl), 1)", "return reduced(kl, 'sum')/max(kl.numel(), 1)", 'batchmean divides by all elements'),
    Fault('return torch.where(p==0, 0., p*x)', 'return p*x', 'NaN where the teacher excludes a class'),
    Fault('t = t.detach()', '', 'the teacher learns (classes)'),
    Fault('if y is None: y = t.argmax(1)', 'if y is None: y = s.argmax(1)', "the student's decisions for the teacher's"),
    Fault('if self.standardize: s,t = standardized(s),standardized(t)', 'if self.standardize: t = standardized(t)',
          'only the teacher is standardized'),
    Fault('(z.std(1, keepdim=True)+1e-7)', '(z.std(1, keepdim=True, unbiased=False)+1e-7)', 'another standard deviation'),
    Fault("return distillation_kl(s, t, T, 'none').sum(1)*T**2", "return distillation_kl(s, t, T, 'none').sum(1)", 'without the factor T²'),
    Fault('return (positive+negative).sum(1)*self.T**2', 'return positive.sum(1)*self.T**2', 'labels that do not apply teach nothing'),
    Fault('return (positive+negative).sum(1)*self.T**2', 'return (positive+negative).mean(1)*self.T**2', 'mean over labels'),
    Fault('s,t = s-s.mean(1, keepdim=True),t-t.mean(1, keepdim=True)', '', 'shifts count'),
    Fault('return torch.where(t.isnan().any(1), torch.nan, loss)', 'return loss', 'NaN of a teacher is hidden'),
    Fault('(self.alpha*target+self.beta*_kl(so, to))', '(self.beta*target+self.alpha*_kl(so, to))', 'alpha and beta are swapped'),
    Fault('to = torch.where(_excludes_all(to), so.detach(), to)', '', 'NaN for a teacher that allows one class'),
    Fault('return -target[:,0]+self.gamma*self.T**2*soft_cross_entropy(so, rest)',
          'return -target[:,0]+self.gamma*soft_cross_entropy(so, rest)', 'without the factor T²'),
    Fault('rest = torch.where(_excludes_all(to), 0., to.softmax(1))', 'rest = to.softmax(1)', 'NaN for a teacher that allows one class'),
    Fault('(1-classes).mean())*self.T**2', '(1-classes).mean())', 'without the factor T²'),
    Fault('F.cosine_similarity(p-p.mean(dim, keepdim=True), q-q.mean(dim, keepdim=True)', 'F.cosine_similarity(p, q',
          'cosine instead of correlation'),
    Fault('soft_cross_entropy(y, labels.detach().softmax(1))', 'soft_cross_entropy(y, labels.softmax(1))', 'the target is not detached'),
    Fault('return torch.lerp(nll, uniform, self.epsilon)', 'return nll+self.epsilon*uniform', 'mass above 1'),
    Fault('uniform = reduced(-logp.mean(1), self.reduction)', 'uniform = reduced(-logp.sum(1), self.reduction)',
          'smoothing with C times the mass'),
],
'distill.losses': [
    Fault('if t is None: return reduced(ce, self.reduction)', 'if t is None: return reduced(ce*self.ce, self.reduction)',
          'plain labels count less'),
    Fault('taught = (t.isfinite()|excluded).all(1)&~excluded.all(1)', 'taught = t.isfinite().all(1)',
          'rows with an excluded class are not taught'),
    Fault('taught = (t.isfinite()|excluded).all(1)&~excluded.all(1)', 'taught = (t.isfinite()|excluded).all(1)',
          'NaN for a row without any class'),
    Fault('t = t.where(taught[:,None], s.detach())', '', 'NaN reaches the gradient'),
    Fault('if known is not None: ce = ce.where(known, 0.)', '', 'invented labels count'),
    Fault('kd = kd.where(taught, 0.)', '', 'rows without a teacher count'),
    Fault('ce_weight = torch.where(taught, self.ce, 1.)', 'ce_weight = self.ce', 'labels without a teacher count less'),
    Fault("reduction='none').mean(1)", "reduction='none').sum(1)", 'sum over labels'),
    Fault('def activation(self, x): return x.sigmoid()', 'def activation(self, x): return x.softmax(-1)',
          'several labels exclude each other'),
    Fault('if isinstance(self.soft, TeacherLoss) and not isinstance(self.soft, BinaryKDLoss):', 'if False:',
          'softmax losses for several labels'),
    Fault('return reduced(ce*ce_weight+self.weight*kd, self.reduction)', 'return reduced(ce*ce_weight+kd, self.reduction)',
          'the weight is ignored'),
    Fault('def decodes(self, x): return x>self.thresh', 'def decodes(self, x): return x>.5', '`thresh` is ignored'),
],
'training.autocast': [
    Fault('context.__exit__(None, None, None)', 'pass', 'an interrupted step stays in autocast'),
    Fault('= autocast_depth(),learn', '= 0,learn', "a context of the user's is left too"),
    Fault('if context and autocast_depth()>self.depth', 'if context', 'a context that was left already is left once more'),
    Fault('torch.autocast_increment_nesting()\n', 'pass\n', 'the depth is one too small, and counted down'),
],
'training.self_distillation': [
    Fault('return 1-pct*min(1, self.n_steps/self.fade)', 'return 1-pct', 'the weight falls to 0 in short runs too'),
    Fault('min(1, self.n_steps/self.fade)', 'self.n_steps/self.fade', 'the weight falls below 0 in long runs'),
    Fault("'u.weak', output='logits').softmax(1)", "'u.weak', output='logits').softmax(0)", 'the target is normalized over rows'),
    Fault("target, 'ce')", "target, 'mse')", 'another distance'),
],
'training.callback': [
    Fault('self.learn.remove_cbs(self.replaced)', 'pass', "yours is added beside a method's"),
    Fault('if len(self.learn._grab_cbs(type(self)))>1: raise', 'if False: raise', 'two are accepted'),
    Fault('if value is None and self.learn is not None: self.detached()', '', 'leaving is not noticed'),
    Fault('if value is None and self.learn is not None: self.detached()', 'if value is None: self.detached()',
          'one that never joined leaves'),
    Fault('if value is not None: self.attached()', '', 'joining is not noticed'),
    Fault("if event=='after_fit' or event in vars(self) or hasattr(type(self), event): super().__call__(event)",
          'if event in vars(self) or hasattr(type(self), event): super().__call__(event)',
          'a callback that stopped itself stays off after the fit'),
    Fault("if event=='after_fit' or event in vars(self) or hasattr(type(self), event): super().__call__(event)", 'super().__call__(event)',
          'handlers are looked for on the learner'),
    Fault("if event=='after_fit' or event in vars(self) or hasattr(type(self), event): super().__call__(event)",
          "if event=='after_fit' or hasattr(type(self), event): super().__call__(event)", "an instance's own handlers are skipped"),
    Fault('new.__dict__.update({k:deepcopy(v, memo) for k,v in vars(self).items()})',
          'for k,v in vars(self).items(): setattr(new, k, deepcopy(v, memo))', 'a copy joins again'),
    Fault('return not learn.lock.locked()', 'return True', 'validate is taken for fit'),
],
'training.events': [
    Fault("if event_name not in _step_events: return Learner._call_one(self.learn, event_name)", '', 'an event that does not exist is accepted'),
    Fault('now = [(cb, cb.order) for cb in self.learn.cbs]', 'now = list(self.learn.cbs)', 'a callback that moves keeps its place'),
    Fault('if now!=self.known: self.known,self.busy,self.idle = now,{},{}', 'if self.known is None: self.known = now', 'a callback that joins is not called'),
    Fault(" or any(event_name in vars(cb) for cb in self.idle[event_name])", '', 'a handler that comes later is not called'),
    Fault("for cb in self.learn.cbs.sorted('order')", 'for cb in self.learn.cbs', 'callbacks are called in the order they joined'),
    Fault('type(cb).__call__ not in _calls or hasattr(cb, event_name)', 'hasattr(cb, event_name)', 'a `__call__` of its own is passed over'),
],
'training.batch': [
    Fault("if view.startswith('_'): raise AttributeError(view)", '', 'private names are views'),
    Fault('self.__dict__[view] = v = self._get(view)', 'v = self._get(view)', 'a view is drawn at each access'),
    Fault('for m in bns: m.track_running_stats = False', 'pass', 'running statistics move'),
    Fault('finally:\n        for m in bns: m.track_running_stats = True', 'finally: pass', 'running statistics stop for good'),
    Fault("bns = [m for m in net.modules() if m.training and getattr(m, 'track_running_stats', False)]",
          "bns = [m for m in net.modules() if getattr(m, 'track_running_stats', False)]", 'frozen norms normalize by the batch'),
    Fault('setattr(model, name, compiled_in_place(child))', 'pass', 'compiled parts keep their prefix'),
    Fault('for m,_ in self.compiled: m._compiled_call_impl = None', '', 'compiled code skips hooks'),
    Fault('for m,call in self.compiled: m._compiled_call_impl = call', '', 'the model stays uncompiled'),
    Fault('lambda module, args, out: out, detach=False', 'lambda module, args, out: out, detach=True', 'hooked outputs have no gradient'),
    Fault('def labels(self)->Tensor: return self.y.flatten().long()', 'def labels(self)->Tensor: return self.y',
          'labels of tables are a column'),
    Fault('self.true_labels = labels[self.idx]', 'self.true_labels = labels[:len(self.idx)]', 'hidden labels of other rows'),
    Fault('return tuple(o[:n] if self._has_all_rows(o) else o for o in out)', 'return out',
          'outputs of the pool reach the supervised loss'),
    Fault("self._first_rows(outs[names.index('logits')], n)", 'self._first_rows(outs[0], n)', 'the first output is taken for the logits'),
    Fault('key = id(net),x,grad,stats,amp', 'key = id(net),x', 'a pass without gradient is taken for one with'),
    Fault('if key not in self.memo: self.memo[key]', 'self.memo[key]', 'each method runs the network again'),
    Fault('inside.enter_context(torch.set_grad_enabled(grad))', '', 'teachers record gradients'),
    Fault('if amp: inside.enter_context(self.step.amp())', '', "teachers ignore the step's precision"),
    Fault('if not stats: inside.enter_context(frozen_stats(net))', '', 'extra passes move running statistics'),
    Fault('return out[self.step.outputs.index(output)]', 'return out[0]', 'the wrong output'),
    Fault('for h in self.hooks: h.stored = None', '', 'a batch keeps inner activations'),
],
'training.ema_teacher': [
    Fault('return min(alpha, (1+step)/(10+step)) if warmup else alpha', 'return min(alpha, (1+step)/(10+step))', 'warm-up always'),
    Fault('return min(alpha, (1+step)/(10+step)) if warmup else alpha', 'return (1+step)/(10+step) if warmup else alpha', 'no final decay'),
    Fault('return deepcopy(model, {id(v):v.detach().clone() for v in in_graph})', 'return deepcopy(model)',
          'tensors of a graph cannot be copied'),
    Fault('self.model = copy_model(model).requires_grad_(False)', 'self.model = copy_model(model)', 'the teacher is trainable'),
    Fault('if not 0<=alpha<=1:', 'if not 0<alpha<1:', 'decays 0 and 1 are refused'),
    Fault("is_stat = k.startswith('running_') and a.is_floating_point()", 'is_stat = a.is_floating_point()', 'other buffers are averaged'),
    Fault('if model is not None and model is not self.student: self._follow(model)', '', 'a new student is ignored'),
    Fault('if not self._is_paired(): self._follow(self.student)', '', 'tensors that were replaced are not followed'),
    Fault('self.n += 1', '', 'the decay does not grow'),
    Fault('elif decay: torch._foreach_lerp_(ts, ss, 1-decay)', 'elif decay: torch._foreach_lerp_(ts, ss, decay)', 'decay and its complement are swapped'),
    Fault("(self.buffer_mode=='auto' and momentum>1-self.decay_now)", "self.buffer_mode=='auto'", "'auto' always averages"),
    Fault("average = self.buffer_mode=='lerp' or", 'average =', "'lerp' is ignored"),
    Fault('if self.rest[0]: torch._foreach_copy_(*self.rest)', '', 'counters are not copied'),
    Fault("self.alpha,self.n = state['alpha'],state['n']", "self.alpha = state['alpha']", 'a resumed decay starts anew'),
    Fault('new.n = self.n', '', 'the decay of a copy starts anew'),
    Fault('if self.student is not None: new._follow(memo.get(id(self.student), self.student))', '', 'a copy follows itself'),
],
'training.ema': [
    Fault('if not done: self.undo()', 'pass', 'an interrupted validation leaves the average in the model'),
    Fault('order,run_valid = SaveModelCallback.order-1,False', 'order,run_valid = SaveModelCallback.order+1,False',
          'the best raw weights are saved'),
    Fault("return 'lr_finder' in vars(self.learn)", 'return False', 'lr_find moves the average'),
    Fault('        self.raw_in()\n        if self.teacher is None or', '        if self.teacher is None or',
          'an epoch starts from averaged weights'),
    Fault('if self.decay is None: self.teacher.set_alpha(averaging_decay(n_steps))', '', 'the decay does not fit the run'),
    Fault('if self.raw is not None and not self.aside: self.before_train()', 'pass', 'a step starts from averaged weights'),
    Fault('if self.stepping and not self.aside: self.teacher.update()', 'if not self.aside: self.teacher.update()', 'canceled steps count'),
    Fault('self.learn.dl = _Guarded(self.dl, self.raw_in)', '', 'an interrupted validation leaves the average in the model (callback)'),
    Fault('def after_fit(self): self.after_cancel_validate()', 'def after_fit(self): pass', 'the raw weights are left after fit'),
    Fault('if self.teacher is None or self.raw is not None: return', 'if self.teacher is None: return',
          'a second swap loses the raw weights'),
    Fault('else: self.teacher = None', 'else: pass', 'an average of other weights goes on'),
    Fault('raw = None if self.raw is None else [t.clone() for t in self.raw]', 'raw = None', 'raw weights are not in the state'),
],
'training.method': [
    Fault('self.add_cbs(replaced)', 'pass', 'yours leaves the methods without a step'),
    Fault('if isinstance(cb, Companion) and not cb.auto and', 'if isinstance(cb, Companion) and', 'one that was removed for good comes back'),
    Fault('return averaging_decay(b.n_steps) if self.decay is None else self.decay', 'return averaging_decay(b.n_steps)',
          "a part's own decay is ignored"),
    Fault("return {**super().__getstate__(), '_buffers':{}, '_modules':{}, 'set_up_for':None}", 'return super().__getstate__()',
          'an export holds the state of a pool'),
    Fault('step_number(lambda: weight(self.pct))', 'step_number(lambda: weight(1.))',
          'schedules are ignored'),
    Fault('if b.truth is None or b.acc_logged: return', 'if b.truth is None: return', 'the accuracy is logged once per method'),
    Fault('mask = mask*(b.truth>=0)\n', '\n', 'rows without hidden label count as wrong'),
    Fault('if self._is_new(pool, unwrap(self.learn.model)):', 'if self.set_up_for is None:', 'state of another pool stays'),
    Fault('return n_out!=self.n_out or old_pool!=pool or old_model is not model', 'return n_out!=self.n_out or old_pool!=pool',
          "a new model keeps the old one's teacher"),
    Fault('if part.set_up_for!=(self.n_out, pool):', 'if True:', 'each fit forgets the state of parts'),
    Fault('if set(state)!=set(mine):', 'if False:', 'state of another method is loaded'),
    Fault('state = {k:v for k,v in super().__getstate__().items() if k not in self.made_by_setup}', 'state = super().__getstate__()',
          'an export holds the teacher'),
    Fault('if any(m is not self for m in self.learn._grab_cbs(SSLCallback)): return', '', 'the first method to leave takes the step along'),
],
'training.compatible': [
    Fault('if replacing and mixing:', 'if False:', 'MixUp and a replaced loss'),
    Fault('if several and learn._grab_cbs(GradientAccumulation):', 'if False:', 'extra steps and accumulation'),
    Fault("if through and forward=='no_grad':", 'if False:', 'a method without gradient'),
    Fault('if pair and not isinstance(net, TwoNetworks):', 'if False:', 'two networks in one'),
],
'training.step': [
    Fault('super().attached()', 'pass', 'two steps'),
    Fault('for cb in self.learn._grab_cbs(Companion): cb.check_single()', 'pass', 'two of yours are accepted'),
    Fault('if agreement is None or agreement>=self.gate: return L()', 'return L()', 'the gate is always open'),
    Fault('if agreement is None or agreement>=self.gate: return L()', 'if agreement is None or agreement>self.gate: return L()',
          '> for >='),
    Fault('return self.methods.filter(lambda m: m.trusts_pool)', 'return self.methods',
          'the gate shuts methods that do not trust the pool'),
    Fault('self.restore()                                      # after an interrupted lr_find', '',
          'an interrupted lr_find leaves its traces'),
    Fault("return 'separate' if norms_train and not one_row else 'joint'", "return 'joint'",
          'the pool moves the statistics'),
    Fault("return 'separate' if norms_train and not one_row else 'joint'",
          "return 'separate' if not one_row else 'joint'", 'separate passes without need'),
    Fault('asked = first(m.forward for m in self.ms if m.forward)', 'asked = None', "a method's own forward is ignored"),
    Fault("filter(lambda row: row!=('l','weak'))\n        return [('l','weak')", "map(noop)\n        return [('l','weak')",
          'labeled rows go through twice'),
    Fault('for m in self.ms: m.before_forward(b)', 'pass', 'before_forward is not called'),
    Fault('self._train_extra(())                               # checkpoints', '(())                               # checkpoints',
          'parameters of methods stay in the optimizer'),
    Fault('self.extra_opt_state = {**self.extra_opt_state, **left}', '', 'momentum of extra parameters is lost each epoch'),
    Fault("if self.mode=='no_grad' and rows is self.rows:", 'if False:', "'no_grad' is ignored"),
    Fault("torch.set_grad_enabled(self.mode!='no_grad')", 'torch.set_grad_enabled(True)', 'weak views record gradients'),
    Fault('learn.xb = tuplify(b.x.l.weak)', 'pass', 'later callbacks see rows of the pool'),
    Fault('if b.y is not b.given_y: learn.yb = tuplify(b.y)', '', 'replaced labels are ignored'),
    Fault('if self.replacing: learn.loss_func = self.replaced_loss', '', 'sup_loss is ignored'),
    Fault('if self.learn.loss_func==self.replaced_loss: self.learn.loss_func = self.base_loss', 'pass', 'the replaced loss stays'),
    Fault('def before_validate(self): self.restore_loss()', 'def before_validate(self): pass', 'validation with the replaced loss',
          'the end of the loop over the batches restores it too'),
    Fault('b.sup = learn.loss_grad.detach()', 'b.sup = learn.loss_grad', 'methods train through the supervised loss'),
    Fault('learn.loss = learn.loss+unsup.detach()', 'pass', 'the table shows the supervised loss alone'),
    Fault('learn.loss_grad = learn.loss_grad+unsup', 'pass', 'the pool teaches nothing'),
    Fault('else weight*loss', 'else loss', 'weights are ignored'),
    Fault('def after_cancel_step(self): self.canceled = True', 'def after_cancel_step(self): pass', 'a skipped step moves teachers'),
    Fault('if self.canceled or not self.moved: return', 'if self.canceled: return', 'a batch without a step moves teachers',
          'a training batch without a step was canceled'),
    Fault('if self.canceled or not self.moved: return', 'if not self.moved: return', 'a canceled batch moves teachers'),
    Fault('with train_only(parameters, self.opt):', 'with nullcontext():', 'extra steps move all parameters'),
    Fault('if pos is not None: self.dls.pool.pos = pos', '', 'lr_find moves the pool'),
    Fault('for m,state in states: m.load_state_dict(state)', '', 'lr_find changes the state of methods'),
    Fault('def unsup_loss(self, b:SSLBatch): return b.loss(b.l.strong, b.y)',
          'def unsup_loss(self, b:SSLBatch): return b.loss(b.l.weak, b.y)', 'the weak view twice'),
],
'semi.alignment': [
    Fault('shares>0).all()', 'shares>=0).all()', 'shares of 0 are accepted'),
    Fault("self.register_buffer('goal', goal/goal.sum())", "self.register_buffer('goal', goal.clone())", 'shares are not normalized'),
    Fault("if self.target=='labels': self.goal.lerp_", 'if False: self.goal.lerp_', "'labels' is uniform"),
    Fault("if self.target=='predictions': self.goal.lerp_", 'if False: self.goal.lerp_', "'predictions' is uniform"),
    Fault('self.mean.lerp_(all_mean(p.detach().mean(0)), 1-decay)', 'self.mean.lerp_(all_mean(p.detach().mean(0)), decay)',
          'decay and its complement are swapped'),
    Fault('return self.goal/self.mean.clamp(min=1e-6)', 'return self.goal/self.mean',
          'alignment without its clamp: NaN for a class that is never predicted'),
    Fault('return q.div_(q.sum(1, keepdim=True))', 'return q', 'aligned probabilities do not sum to 1'),
    Fault('return self.tau*self.mean.clamp(min=1e-6).log()', 'return self.mean.clamp(min=1e-6).log()', 'tau is ignored'),
    Fault('return self.tau*self.mean.clamp(min=1e-6).log()', 'return self.tau*self.mean.log()', 'adjustment without its clamp'),
],
'semi.threshold': [
    Fault('min(self.end, self.expected_accuracy)', 'self.end', 'the expected accuracy is ignored'),
    Fault('*self.accuracy.clamp(max=1)', '', 'the accuracy on labeled rows is ignored'),
    Fault('self.accuracy.clamp(max=1)', 'self.accuracy', 'shares above 1',
          'rounding of a mean of numbers up to 1: no share above 1 keeps more rows than all'),
    Fault('if self.start<end else end)', ')', 'a start above the end'),
    Fault('surer = same&(self.confidence[None]>conf[:,None])', 'surer = self.confidence[None]>conf[:,None]', 'classes compete'),
    Fault('(self.confidence[None]>conf[:,None])', '(self.confidence[None]>=conf[:,None])', '>= for >'),
    Fault('self.level*same.sum(1))', 'self.level*len(self.confidence))', 'the share of all rows'),
    Fault('all_rows(conf)])[-self.n_last:]', 'all_rows(conf)])[:self.n_last]', 'the oldest predictions stay in memory'),
],
'semi.consistency': [
    Fault('if self._is_default(name, given.get(name, getattr(self, name, None))): setattr(self, name, value)', 'pass', "'paper' keeps our defaults"),
    Fault('return argument is not None and argument.default==value', 'return True', "'paper' replaces what was given"),
    Fault('if part.decay is None: part.decay = .999', 'pass', "'paper' keeps our decay"),
    Fault('return L(self.student_view) if self.has_teacher else L(self.target_view, self.student_view).unique()',
          'return L(self.target_view, self.student_view).unique()', "a teacher's view goes through the student too"),
    Fault('return averaging_decay(self.n_steps) if self.teacher_decay==', 'return .999 if self.teacher_decay==',
          "'auto' does not fit the run"),
    Fault('self.teacher_model.update()', 'pass', 'the teacher does not move'),
    Fault("output='logits')\n        return b.u[self.target_view].detach()", "output='logits')\n        return b.u[self.target_view]",
          'the target is not detached'),
    Fault('if self.has_teacher: return b.run(', 'if False: return b.run(', 'the teacher is not used'),
    Fault('_,keep,_ = confident_label(p, self.threshold, inclusive=True)', '_,keep,_ = confident_label(p, self.threshold)', '> for >='),
    Fault('if self.hard: target = most_probable(p)', 'if False: target = p.argmax(1)', 'soft targets always'),
    Fault('elif self.temperature==1: target = p', 'elif True: target = p', 'the temperature is ignored'),
    Fault('return consistency(y, target, self.distance)', 'return consistency(y, target)', 'the distance is ignored'),
    Fault('target = target-bias', 'target = target+bias', 'the adjustment of the target has the wrong sign'),
    Fault('student = student+bias', 'student = student', 'the student is not adjusted'),
    Fault('return w, aligned if self.aligned_target else p', 'return w, aligned', '`aligned_target` is ignored'),
    Fault('w = self.keep(aligned.detach(), b)', 'w = self.keep(p.detach(), b)', 'weights from probabilities before the alignment'),
    Fault('return mean_over(loss, w) if self.mean_over_kept else reduced(loss)', 'return reduced(loss)', '`mean_over_kept` is ignored'),
    Fault('return loss+self.extra_loss(b, p, w)', 'return loss', 'the extra loss is ignored'),
    Fault('self.mean_loss(self.compare(student, p)*w, w)', 'self.mean_loss(self.compare(student, p), w)', 'the threshold is ignored'),
    Fault("if level is not None: self.log('threshold', level)", '', 'the level is not recorded'),
],
'semi.fixmatch': [
    Fault('paper = dict(threshold=.95, weight=1.)', 'paper = {}', "'paper' keeps our threshold"),
    Fault("threshold='auto', # Least", 'threshold=None, # Least', 'all rows count'),
    Fault('hard:bool=True, # Train', 'hard:bool=False, # Train', 'soft targets'),
    Fault('temperature:float=.5, # Temperature', 'temperature:float=1., # Temperature', 'soft targets are not sharpened'),
    Fault('super().__init__(threshold, weight, hard, temperature, **kwargs)',
          'super().__init__(threshold, 1., hard, temperature, **kwargs)', 'the weight is ignored'),
    Fault('super().__init__(threshold, weight, hard, temperature, **kwargs)', 'super().__init__(threshold, weight, hard, temperature)',
          'further arguments are ignored'),
],
'semi.flexmatch': [
    Fault('return x/(2-x)', 'return x', 'convex is linear'),
    Fault('return torch.log1p(x)/math.log(2)', 'return torch.log1p(x)', 'concave does not reach 1'),
    Fault('if n<=torch.iinfo(o).max)', 'if n<=torch.iinfo(o).max+1)', '128 classes do not fit int8'),
    Fault('counts[0] = n_unlabeled_samples', '', 'no item is unselected'),
    Fault('competing = self.counts if self.warmup else per_class', 'competing = self.counts', '`warmup` is ignored'),
    Fault('competing.max().clamp(min=1)', 'competing.max()', 'NaN thresholds before the first selection'),
    Fault('return self.threshold*self.mapping_func(beta)', 'return self.threshold*beta', 'the mapping is ignored'),
    Fault('_,writes = last_writer(idxes, self.scratch, selected_mask.bool())', '_,writes = last_writer(idxes, self.scratch)',
          'rows that were not selected write'),
    Fault('self.net_outputs.scatter_add_(0, idxes, change.to(self.net_outputs.dtype))', 'pass', 'labels are not stored'),
    Fault('self.counts.scatter_add_(0, old+1, -moved)', '', 'an item counts for each label that it had'),
    Fault('self.status.threshold = self.threshold\n', '\n', 'a threshold that was changed is ignored'),
    Fault('labels,selected,conf = confident_label(p, self.threshold, inclusive=True)',
          'labels,selected,conf = confident_label(p, self.threshold)', '> for >= (selection)'),
    Fault('keep = (conf>=self.status.get_threshold(labels)).to(p.dtype)', 'keep = (conf>self.status.get_threshold(labels)).to(p.dtype)',
          '> for >='),
    Fault('keep = (conf>=self.status.get_threshold(labels)).to(p.dtype)', 'keep = selected', 'the threshold per class is ignored'),
    Fault('self.status.update(all_rows(b.idx), all_rows(selected), all_rows(labels))', 'pass', 'the status does not move'),
    Fault('super().__init__(DynamicThreshold(threshold, warmup, mapping), weight, **kwargs)',
          'super().__init__(DynamicThreshold(threshold), weight, **kwargs)', "the callback's arguments are ignored"),
],
'semi.adaptive': [
    Fault('self.confidence.lerp_(all_mean(conf.mean()), 1-decay)', 'self.confidence.lerp_(all_mean(conf.mean()), decay)',
          'decay and its complement are swapped'),
    Fault('per_class = self.confidence*self.mean/self.mean.max()', 'per_class = self.confidence*self.mean/self.mean.sum()',
          'another scale of the thresholds'),
    Fault('return (conf>=per_class.gather(0, labels)).to(p.dtype)', 'return (conf>per_class.gather(0, labels)).to(p.dtype)',
          '> for >= (FreeMatch)'),
    Fault('self.share.lerp_(all_mean(class_share(labels, p.shape[1])), 1-decay)', 'self.share.lerp_(all_mean(p.mean(0)), 1-decay)',
          'soft shares'),
    Fault('if len(every)>1: self.var', 'self.var', 'NaN variance of one row'),
    Fault('below = (conf-self.confidence).clamp(max=0)', 'below = conf-self.confidence', 'rows above the mean count less'),
    Fault('*self.n_sigma**2/(2*self.var', '/(2*self.var', '`n_sigma` is ignored'),
    Fault('(2*self.var.clamp(min=1e-12))', '(2*self.var)', 'NaN without variance'),
    Fault('self.level = self.threshold*all_mean(labeled_conf.mean())', 'self.level = self.threshold',
          'the confidence on labeled rows is ignored'),
    Fault('return (p.amax(1)>=self.level).to(p.dtype)', 'return (p.amax(1)>self.level).to(p.dtype)', '> for >= (AdaMatch)'),
    Fault('after = 1.*(b.pct>=self.warmup)', 'after = 1.*(b.pct>self.warmup)', '> for >='),
    Fault('bound = (self.rho*(self.C*decrease)).clamp(min=self.least)', 'bound = self.rho*(self.C*decrease)',
          'no lower limit of the bound'),
    Fault('self.rho*(self.C*decrease)', 'self.rho*decrease', 'C is ignored'),
    Fault('return (loss<=self.level).to(p.dtype)', 'return (loss<self.level).to(p.dtype)', '< for <='),
    Fault('/self.n.clamp(1, 10))', '/self.n.clamp(min=1))', 'a mean over the whole warm-up'),
    Fault('torch.where(b>0, a/b.clamp(min=1e-12), 0.)', 'a/b.clamp(min=1e-12)', 'a class without predictions dominates'),
    Fault('return ratio/ratio.sum().clamp(min=1e-12)', 'return ratio/ratio.sum()', 'NaN where nothing counts'),
    Fault('class_share(labels, len(p_mean), keep)', 'class_share(labels, len(p_mean))',
          'rows that do not count are in the shares'),
    Fault('(p*keep[:,None]).mean(0)', 'p.mean(0)', 'rows that do not count are in the mean'),
    Fault('log_now = torch.where(h>0, now, 1.).log()', 'log_now = now.log()', 'infinite for a class that is not predicted'),
    Fault('self.now(self.fairness)*fair', 'fair', 'the weight of the fairness is ignored'),
    Fault('self.threshold.weights(self.align.confidence(p, b), b)', 'self.threshold.weights(p.amax(1), b)', "SoftMatch's weights are not of aligned confidences"),
    Fault('super().__init__(GaussianWeight(n_sigma, decay), weight, align=align, **kwargs)',
          'super().__init__(GaussianWeight(n_sigma, decay), weight, **kwargs)', 'SoftMatch without alignment'),
    Fault("align = DistributionAlignment('predictions', decay)", "align = DistributionAlignment('uniform', decay)",
          'AdaMatch aligns to uniform'),
    Fault('self.threshold.threshold = .95', 'pass', "AdaMatch's 'paper' keeps our threshold"),
],
}

def source_of(module):
    "Path of the module's notebook, from the comment that `nbdev-export` writes"
    text = (root/'fastssl'/f"{module.replace('.', '/')}.py").read_text()
    name = re.search(r'File to edit: (?:\.\./)+nbs/(\S+)\.$', text, re.M)[1]
    return root/'nbs'/name

def exported(cell): return cell['cell_type']=='code' and re.search(r'^#\|\s*export\b', ''.join(cell['source']), re.M)

def patch(text, fault, where):
    "`text` with the fault in it; `ValueError` unless the old text is there once"
    n = text.count(fault.old)
    if n!=1: raise ValueError(f'{where}: found {n} times instead of once: {fault.old!r}')
    return text.replace(fault.old, fault.new)

def patched_module(module, fault):
    path = root/'fastssl'/f"{module.replace('.', '/')}.py"
    return patch(path.read_text(), fault, path.name)

def patched_cells(module, fault):
    "Code cells of the module's notebook, with the fault in one that is exported; None: without a fault"
    path = source_of(module)
    cells = [c for c in json.loads(path.read_text())['cells'] if c['cell_type']=='code']
    sources = [''.join(c['source']) for c in cells]
    if fault is None: return sources
    hits = [i for i,c in enumerate(cells) if exported(c) and fault.old in sources[i]]
    if len(hits)!=1: raise ValueError(f'{path.name}: found in {len(hits)} exported cells instead of one: {fault.old!r}')
    i = hits[0]
    sources[i] = patch(sources[i], fault, path.name)
    return sources

# ------ in a forked process: returns whether the tests pass
def run_notebook(module, fault):
    import types
    from IPython.display import display
    main = types.ModuleType('__main__')
    main.__dict__['display'] = display
    sys.modules['__main__'] = main                       # where pickle looks for the classes of the notebook
    for source in patched_cells(module, fault):
        if re.search(r'^\s*#\s*\|\s*(notest|slow|cuda|eval:\s*false)', source, re.M): continue
        code = '\n'.join(line for line in source.splitlines() if not line.startswith(('%','!')))
        exec(compile(code, f'<{module}>', 'exec'), main.__dict__)
    return True

def run_pytest(files):
    import pytest
    os.chdir(root)
    status = int(pytest.main(['-x', '-q', '-p', 'no:cacheprovider', *(f'tests/{f}' for f in files)]))
    if status in (4,5): raise SystemExit(f'pytest found no tests in {files}')
    return status==0

def fork(module, fault, work, log):
    "Start `work` in a process that imports a copy of the package with the fault; exit status 0: the tests pass, 1: they do not"
    pid = os.fork()
    if pid: return pid
    status = 1
    try:
        signal.alarm(limit)
        out = open(log, 'w')
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder)/'fastssl'
            shutil.copytree(root/'fastssl', package, ignore=shutil.ignore_patterns('__pycache__'))
            if fault: (package/f"{module.replace('.', '/')}.py").write_text(patched_module(module, fault))
            sys.path.insert(0, folder)
            os.environ['PYTHONPATH'] = folder
            os.chdir(folder)
            status = 0 if work() else 1
    except SystemExit: status = 2
    except BaseException: traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)

def in_parallel(jobs, n):
    "Run `jobs`, functions that return the id of a process, `n` at a time; yields (index, passed)"
    todo,running = list(enumerate(jobs)),{}
    while todo or running:
        while todo and len(running)<n:
            i,job = todo.pop(0)
            running[job()] = i
        pid,status = os.wait()
        if pid not in running: continue
        if os.waitstatus_to_exitcode(status)==2: raise SystemExit('a run failed: see its log')
        yield running.pop(pid), status==0

def noticed(todo, work, logs, n):
    "For each (module, fault) of `todo`: do its tests fail? Says so as it goes"
    res,start = {},time.time()
    def job(i):
        module,fault = todo[i]
        return fork(module, fault, lambda: work(module, fault), logs/f'{i}.log')
    for i,passed in in_parallel([partial(job, i) for i in range(len(todo))], n):
        module,fault = todo[i]
        res[todo[i]] = not passed
        why = fault.why if fault else 'without a fault'
        print(f'{time.time()-start:5.0f} s  {"passed" if passed else "failed"}  {module}: {why}', flush=True)
    return res

def preload():
    "Import what all runs share, and nothing of the package"
    import warnings
    warnings.filterwarnings('ignore')
    import matplotlib
    matplotlib.use('Agg')
    import torch
    torch.set_num_threads(1)
    import fastai.vision.all, fastai.callback.all, fastai.tabular.all, fastai.text.all
    import timm, sklearn.semi_supervised, sklearn.cluster, pytest, hypothesis
    assert not any(m.startswith('fastssl') for m in sys.modules)

def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('modules', nargs='*', metavar='MODULE', help='such as losses.semi; default: all')
    parser.add_argument('-j', type=int, default=os.cpu_count(), metavar='N', help='processes at a time')
    parser.add_argument('--notebooks', action='store_true', help='run the notebooks only: what they miss counts as survived')
    args = parser.parse_args()
    unknown = set(args.modules)-set(faults)
    if unknown: parser.error(f'no faults for {sorted(unknown)}: choose from {", ".join(faults)}')
    modules = args.modules or list(faults)
    todo = [(m,f) for m in modules for f in faults[m]]
    for m,f in todo: patched_module(m, f),patched_cells(m, f)                # an outdated fault is an error before anything runs
    os.environ.update(IN_TEST='1', OMP_NUM_THREADS='1')
    sys.path[:] = [o for o in sys.path if o not in ('', str(root))]
    preload()
    logs = Path(tempfile.mkdtemp(prefix='mutants_'))
    print('logs:', logs)
    def by_pytest(module, fault): return run_pytest(module_tests[module])
    def stage(name, todo, work):
        (logs/name).mkdir()
        return noticed(todo, work, logs/name, args.j)
    def check_unchanged(name, modules, work):
        "All tests pass without a fault; otherwise a failure would say nothing"
        broken = [m for (m,_),failed in stage(name, [(m,None) for m in modules], work).items() if failed]
        if broken: raise SystemExit(f'the tests of {broken} fail without a fault: see {logs/name}')
    check_unchanged('unchanged_notebook', modules, run_notebook)
    in_notebook = stage('notebook', todo, run_notebook)
    left = [] if args.notebooks else [o for o in todo if not in_notebook[o]]
    check_unchanged('unchanged_pytest', {module_tests[m]:m for m,_ in left}.values(), by_pytest)
    in_pytest = stage('pytest', left, by_pytest)
    sys.exit(report(modules, in_notebook, in_pytest))

def report(modules, in_notebook, in_pytest):
    "Print the tables; returns the exit status"
    def seen(o): return 'notebook' if in_notebook[o] else 'pytest' if in_pytest.get(o) else 'survived'
    print()
    for o in in_notebook: print(f'{seen(o):9} {o[0]}: {o[1].why}{" — equivalent: "+o[1].equivalent if o[1].equivalent else ""}')
    print(f'\n{"module":20}{"faults":>8}{"notebook":>10}{"pytest":>8}{"survived":>10}{"noticed":>9}')
    for m in (*modules, 'all'):
        found = [seen(o) for o in in_notebook if m in ('all', o[0])]
        counts = [found.count(k) for k in ('notebook','pytest','survived')]
        share = 1-counts[2]/len(found)
        print(f'{m:20}{len(found):8}{counts[0]:10}{counts[1]:8}{counts[2]:10}{share:9.0%}')
    unexplained = [o for o in in_notebook if seen(o)=='survived' and not o[1].equivalent]
    for m,f in unexplained: print(f'survived without a reason: {m}: {f.why}')
    return int(share<least or bool(unexplained))

if __name__=='__main__': main()
