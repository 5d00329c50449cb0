"Every documented class and function exists in the module of its method, with its arguments in order and its defaults; the documented examples run"
import inspect, pytest, torch
from importlib import import_module
from torch import nn
import torch.nn.functional as F
from fastcore.test import test_close as close, test_eq as equal

need = inspect.Parameter.empty
module_of = {                # printed module → the method's module here
    'self_training.pseudo_label':'semi.pseudo_label', 'self_training.pi_model':'semi.mean_teacher', 'self_training.mean_teacher':'semi.mean_teacher',
    'self_training.self_ensemble':'semi.mean_teacher', 'self_training.uda':'semi.uda', 'self_training.mcc':'semi.mcc', 'self_training.self_tuning':'semi.self_tuning',
    'self_training.flexmatch':'semi.flexmatch', 'self_training.dst':'semi.dst', 'vision.models.reid.loss':'semi.mutual',
    'adaptation.self_ensemble':'semi.mean_teacher', 'adaptation.mcc':'semi.mcc', 'adaptation.afn':'adapt.afn',
    'alignment.dann':'adapt.dann', 'alignment.cdan':'adapt.cdan', 'modules.domain_discriminator':'modules.domain_discriminator',
    'alignment.mcd':'adapt.mcd', 'alignment.mdd':'adapt.mdd', 'alignment.regda':'adapt.regda', 'vision.models.keypoint_detection.loss':'adapt.regda'}
documented = {
    'self_training.pseudo_label.ConfidenceBasedSelfTrainingLoss': dict(threshold=need),
    'self_training.pi_model.ConsistencyLoss': dict(distance_measure=need, reduction='mean'),
    'self_training.pi_model.L2ConsistencyLoss': dict(reduction='mean'),
    'self_training.mean_teacher.EMATeacher': dict(model=need, alpha=need),
    'self_training.self_ensemble.ClassBalanceLoss': dict(num_classes=need),
    'self_training.uda.StrongWeakConsistencyLoss': dict(threshold=need, temperature=need),
    'self_training.mcc.MinimumClassConfusionLoss': dict(temperature=need),
    'vision.models.reid.loss.SoftTripletLoss': dict(margin=None, normalize_feature=False),
    'vision.models.reid.loss.CrossEntropyLoss': dict(),
    'self_training.self_tuning.Classifier': dict(backbone=need, num_classes=need, projection_dim=1024, bottleneck_dim=1024, finetune=True, pool_layer=None),
    'self_training.self_tuning.SelfTuning': dict(encoder_q=need, encoder_k=need, num_classes=need, K=32, m=.999, T=.07),
    'self_training.flexmatch.DynamicThresholdingModule': dict(threshold=need, warmup=need, mapping_func=need, num_classes=need, n_unlabeled_samples=need, device=need),
    'self_training.dst.ImageClassifier': dict(backbone=need, num_classes=need, bottleneck_dim=1024, width=2048),
    'self_training.dst.WorstCaseEstimationLoss': dict(eta_prime=need),
    'adaptation.self_ensemble.ConsistencyLoss': dict(distance_measure=need, reduction='mean'),
    'adaptation.self_ensemble.L2ConsistencyLoss': dict(reduction='mean'),
    'adaptation.self_ensemble.ClassBalanceLoss': dict(num_classes=need),
    'adaptation.self_ensemble.EmaTeacher': dict(model=need, alpha=need),
    'adaptation.mcc.MinimumClassConfusionLoss': dict(temperature=need),
    'adaptation.afn.AdaptiveFeatureNorm': dict(delta=need),
    'adaptation.afn.Block': dict(in_features=need, bottleneck_dim=1000, dropout_p=.5),
    'adaptation.afn.ImageClassifier': dict(backbone=need, num_classes=need, num_blocks=1, bottleneck_dim=1000, dropout_p=.5),
    'modules.domain_discriminator.DomainDiscriminator': dict(in_feature=need, hidden_size=need),
    'alignment.cdan.ConditionalDomainAdversarialLoss': dict(domain_discriminator=need),
    'alignment.mcd.classifier_discrepancy': dict(predictions1=need, predictions2=need),
    'alignment.mcd.entropy': dict(predictions=need),
    'alignment.mcd.ImageClassifierHead': dict(in_features=need, num_classes=need, bottleneck_dim=1024, pool_layer=None),
    'alignment.mdd.MarginDisparityDiscrepancy': dict(source_disparity=need, target_disparity=need, margin=4, reduction='mean'),
    'alignment.mdd.ClassificationMarginDisparityDiscrepancy': dict(margin=4),
    'alignment.mdd.ImageClassifier': dict(backbone=need, num_classes=need, bottleneck_dim=1024, width=1024, grl=None, finetune=True, pool_layer=None),
    'alignment.mdd.shift_log': dict(x=need, offset=1e-6),
    'alignment.mdd.RegressionMarginDisparityDiscrepancy': dict(margin=1, loss_function=F.l1_loss),
    'alignment.mdd.ImageRegressor': dict(backbone=need, num_factors=need, bottleneck=None, head=None, adv_head=None, bottleneck_dim=1024, width=1024, finetune=True),
    'alignment.regda.PseudoLabelGenerator2d': dict(num_keypoints=need, height=64, width=64, sigma=2),
    'alignment.regda.RegressionDisparity': dict(pseudo_label_generator=need, criterion=need),
    'alignment.regda.PoseResNet2d': dict(backbone=need, upsampling=need, feature_dim=need, num_keypoints=need, gl=None, finetune=True, num_head_layers=2),
    'vision.models.keypoint_detection.loss.JointsKLLoss': dict()}

def find(printed):
    "The object that a document calls `printed`"
    module,name = printed.rsplit('.', 1)
    return getattr(import_module(f'fastssl.{module_of[module]}'), name)

@pytest.mark.parametrize('printed', documented)
def test_signature(printed):
    expected = documented[printed]
    params = list(inspect.signature(find(printed)).parameters.values())
    assert [p.name for p in params[:len(expected)]]==list(expected)
    for p in params[:len(expected)]: assert expected[p.name] is need or p.default==expected[p.name], p   # a documented argument may have gained a default
    assert all(p.default is not need for p in params[len(expected):]), 'a required argument was added'

def test_no_silent_clash():
    "A name with several meanings is not in `fastssl.all`, which says where it is"
    import fastssl.all
    meanings = {}
    for printed in documented: meanings.setdefault(printed.rsplit('.', 1)[1], set()).add(find(printed))
    several = {name for name,found in meanings.items() if len(found)>1}
    assert several=={'ImageClassifier'}
    for name in (*several, 'entropy'):
        with pytest.raises(AttributeError, match='is not in fastssl.all: it is in'): getattr(fastssl.all, name)
    for name,found in meanings.items():
        if name in vars(fastssl.all): assert {getattr(fastssl.all, name)}==found, name

def test_scalar_entropy():
    p = torch.tensor([[.9,.1],[.5,.5]])
    close(find('alignment.mcd.entropy')(p), -(torch.tensor([.7,.3])+1e-6).log().mean(), 1e-6)

backbone = lambda: nn.Sequential(nn.Conv2d(3,8,3,2), nn.ReLU())
x = torch.rand(4,3,16,16)
classifiers = ('self_training.self_tuning.Classifier','self_training.dst.ImageClassifier','adaptation.afn.ImageClassifier','alignment.mdd.ImageClassifier')

@pytest.mark.parametrize('printed', classifiers)
def test_parts_of_a_classifier(printed):
    "The documented parts exist and are the path from an image to its logits"
    net = find(printed)(backbone(), num_classes=5, bottleneck_dim=16).eval()
    assert (net.num_classes, net.features_dim)==(5,16)
    f = net.bottleneck(net.pool_layer(net.backbone(x)))
    assert f.shape==(4,16)
    equal(net.head(f), net(x))

@pytest.mark.parametrize('printed', classifiers)
def test_published_training(printed):
    "SGD with `get_parameters()` learns a batch: the groups are scaled by the rate that the script gives, or bring none"
    torch.manual_seed(0)
    net,y = find(printed)(backbone(), num_classes=2, bottleneck_dim=16),torch.tensor([0,1,0,1])
    opt = torch.optim.SGD(net.get_parameters(), .01, momentum=0.)
    for g in opt.param_groups: g['lr'] = .01*g['lr'] if 'adaptation.afn' not in printed else g['lr']        # the scripts' scheduler multiplies; AFN has none
    rates = [g['lr'] for g in opt.param_groups]
    assert rates==([.01,.01] if 'afn' in printed else [.001,.01])
    def loss():
        out = net.train()(x)
        return F.cross_entropy(next(o for o in out if o.shape==(4,2)), y)
    start = loss()
    for _ in range(20):
        now = loss()
        opt.zero_grad(); now.backward(); opt.step()
    assert loss()<1.5*start

def test_ema_teacher_example():
    classifier = find('alignment.mdd.ImageClassifier')(backbone(), num_classes=5, bottleneck_dim=16)
    for printed in ('self_training.mean_teacher.EMATeacher','adaptation.self_ensemble.EmaTeacher'):
        teacher = find(printed)(classifier, .9)
        old = [p.clone() for p in teacher.teacher.parameters()]
        with torch.no_grad():
            for p in classifier.parameters(): p += 1
        teacher(x)
        teacher.update()
        for p,q in zip(teacher.teacher.parameters(), old): close(p, q+.1, 1e-5)

def test_regda_example():
    pose = find('alignment.regda.PoseResNet2d')(backbone(), nn.ConvTranspose2d(8,6,4,2,1), 6, num_keypoints=3)
    y,y_adv = pose(x)
    pose.step()
    f = pose.upsampling(pose.backbone(x))
    assert pose.head_adv(f).shape==y_adv.shape==y.shape
    n,size = 3,y.shape[-1]
    loss = find('alignment.regda.RegressionDisparity')(find('alignment.regda.PseudoLabelGenerator2d')(n, size, size), find('vision.models.keypoint_detection.loss.JointsKLLoss')())
    for mode in ('min','max'): assert loss(y, y_adv, mode=mode).isfinite()

def test_mdd_and_afn_examples():
    y_s,y_s_adv,y_t,y_t_adv = torch.randn(4,10,2)
    for printed,kw in {'MarginDisparityDiscrepancy':dict(source_disparity=F.l1_loss, target_disparity=F.l1_loss), 'RegressionMarginDisparityDiscrepancy':dict(loss_function=F.l1_loss),
                       'ClassificationMarginDisparityDiscrepancy':{}}.items():
        assert find(f'alignment.mdd.{printed}')(margin=4., **kw)(y_s, y_s_adv, y_t, y_t_adv).ndim==0
    regressor = find('alignment.mdd.ImageRegressor')(backbone(), 2, bottleneck_dim=6, width=7)
    outputs,outputs_adv = regressor(x)
    regressor.step()
    assert outputs.shape==outputs_adv.shape==(4,2) and regressor.bottleneck(regressor.backbone(x)).shape[1]==6
    norm = find('adaptation.afn.AdaptiveFeatureNorm')(delta=1)
    assert (norm(torch.randn(32,1000))+norm(torch.randn(32,1000))).ndim==0

def test_mcc_example():
    "MCC as a regularizer of CDAN: a discriminator for the features alone is enough"
    from fastssl.modules.domain_discriminator import DomainDiscriminator
    from fastssl.adapt.cdan import ConditionalDomainAdversarialLoss
    from fastssl.semi.mcc import MinimumClassConfusionLoss
    num_classes,feature_dim,batch_size,temperature = 2,1024,10,2.
    discriminator = DomainDiscriminator(in_feature=feature_dim, hidden_size=1024)
    cdan_loss = ConditionalDomainAdversarialLoss(discriminator, reduction='mean')
    mcc_loss = MinimumClassConfusionLoss(temperature)
    f_s,f_t = torch.randn(2,batch_size,feature_dim,requires_grad=True)
    g_s,g_t = torch.randn(2,batch_size,num_classes,requires_grad=True)
    total_loss = cdan_loss(g_s, f_s, g_t, f_t)+mcc_loss(g_t)
    assert total_loss.ndim==0 and total_loss.isfinite()
    total_loss.backward()
    assert all(p.grad is not None for p in discriminator.parameters())
