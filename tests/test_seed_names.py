"Every documented class and function exists, with its arguments in order and its defaults"
import inspect, pytest
from importlib import import_module
import torch.nn.functional as F

need = inspect.Parameter.empty
documented = {
    'losses.semi': dict(ConfidenceBasedSelfTrainingLoss=dict(threshold=need), ConsistencyLoss=dict(distance_measure=need, reduction='mean'), L2ConsistencyLoss=dict(reduction='mean'),
        ClassBalanceLoss=dict(num_classes=need), StrongWeakConsistencyLoss=dict(threshold=need, temperature=need)),
    'losses.adapt': dict(MinimumClassConfusionLoss=dict(temperature=need), AdaptiveFeatureNorm=dict(delta=need)),
    'losses.adversarial': dict(classifier_discrepancy=dict(predictions1=need, predictions2=need), mcd_entropy=dict(predictions=need), shift_log=dict(x=need, offset=1e-6),
        MarginDisparityDiscrepancy=dict(source_disparity=need, target_disparity=need, margin=4, reduction='mean'), ClassificationMarginDisparityDiscrepancy=dict(margin=4),
        RegressionMarginDisparityDiscrepancy=dict(margin=1, loss_function=F.l1_loss), WorstCaseEstimationLoss=dict(eta_prime=need)),
    'losses.metric': dict(SoftTripletLoss=dict(margin=None, normalize_feature=False)),
    'losses.distill': dict(CrossEntropyLoss=dict(), KnowledgeDistillationLoss=dict(T=1., reduction='batchmean')),
    'losses.keypoint': dict(PseudoLabelGenerator2d=dict(num_keypoints=need, height=64, width=64, sigma=2), RegressionDisparity=dict(pseudo_label_generator=need, criterion=need)),
    'training.ema': dict(EMATeacher=dict(model=need, alpha=need)),
    'semi.self_tuning': dict(Classifier=dict(backbone=need, num_classes=need, projection_dim=1024, bottleneck_dim=1024, finetune=True, pool_layer=None),
        SelfTuning=dict(encoder_q=need, encoder_k=need, num_classes=need, K=32, m=.999, T=.07)),
    'semi.flexmatch': dict(DynamicThresholdingModule=dict(threshold=need, warmup=need, mapping_func=need, num_classes=need, n_unlabeled_samples=need, device=need)),
    'semi.dst': dict(DSTImageClassifier=dict(backbone=need, num_classes=need, bottleneck_dim=1024, width=2048)),
    'adapt.afn': dict(Block=dict(in_features=need, bottleneck_dim=1000, dropout_p=.5), AFNImageClassifier=dict(backbone=need, num_classes=need, num_blocks=1, bottleneck_dim=1000, dropout_p=.5)),
    'adapt.mcd': dict(ImageClassifierHead=dict(in_features=need, num_classes=need, bottleneck_dim=1024, pool_layer=None)),
    'adapt.mdd': dict(MDDImageClassifier=dict(backbone=need, num_classes=need, bottleneck_dim=1024, width=1024, grl=None, finetune=True, pool_layer=None),
        MDDImageRegressor=dict(backbone=need, num_factors=need, bottleneck=None, head=None, adv_head=None, bottleneck_dim=1024, width=1024, finetune=True)),
    'adapt.regda': dict(PoseResNet2d=dict(backbone=need, upsampling=need, feature_dim=need, num_keypoints=need, gl=None, finetune=True, num_head_layers=2))}

@pytest.mark.parametrize('module,name', [(r,n) for r,ns in documented.items() for n in ns])
def test_signature(module, name):
    expected = documented[module][name]
    params = list(inspect.signature(getattr(import_module(f'fastssl.{module}'), name)).parameters.values())
    assert [p.name for p in params[:len(expected)]]==list(expected)
    for p in params[:len(expected)]: assert expected[p.name] is need or p.default==expected[p.name], p   # a documented argument may have gained a default
    assert all(p.default is not need for p in params[len(expected):]), 'a required argument was added'
