//! The accountant backwards, and plans of private training.

#![allow(clippy::unwrap_used, reason = "tests")]

use medinet_privacy::*;

fn limit(epsilon: f64, delta: f64) -> PrivacyLimit {
    PrivacyLimit { epsilon: Epsilon::new(epsilon).unwrap(), delta: Delta::new(delta).unwrap() }
}

fn rate(value: f64) -> SamplingRate {
    SamplingRate::new(value).unwrap()
}

fn cost(q: f64, sigma: f64, steps: u64, delta: f64, spent: &Composition, accounting: Accounting) -> f64 {
    let noise_multiplier = NoiseMultiplier::new(sigma).unwrap();
    let event = Event::Gaussian { sampling_rate: rate(q), noise_multiplier, steps };
    spent.with(&event).epsilon(Delta::new(delta).unwrap(), accounting)
}

#[test]
fn noise_is_the_least_that_meets_the_target() {
    for accounting in [Accounting::Renyi, Accounting::Tight] {
        for (epsilon, delta, q, steps) in
            [(3.0, 1e-5, 0.01, 2000), (0.5, 1e-6, 0.1, 100), (8.0, 1e-5, 1.0, 20)]
        {
            let none = Composition::new();
            let sigma = noise_multiplier_for(&limit(epsilon, delta), rate(q), steps, &none, accounting)
                .unwrap()
                .get();
            assert!(cost(q, sigma, steps, delta, &none, accounting) <= epsilon);
            assert!(cost(q, sigma / 1.01, steps, delta, &none, accounting) > epsilon, "{sigma}");
        }
    }
}

#[test]
fn what_is_spent_asks_for_more_noise() {
    let (target, none) = (limit(3.0, 1e-5), Composition::new());
    let noise_multiplier = NoiseMultiplier::new(1.5).unwrap();
    let spent = none.with(&Event::Gaussian { sampling_rate: rate(0.01), noise_multiplier, steps: 1000 });
    let with = |spent| noise_multiplier_for(&target, rate(0.01), 1000, spent, Accounting::Renyi).unwrap();
    assert!(with(&spent) > with(&none));
    // Nothing helps when all is spent.
    let all = none.with(&Event::Gaussian { sampling_rate: rate(1.0), noise_multiplier, steps: 1000 });
    let error = noise_multiplier_for(&target, rate(0.01), 1000, &all, Accounting::Renyi).unwrap_err();
    assert!(error.to_string().contains("1000 steps at sampling rate 0.01 within epsilon 3"), "{error}");
}

#[test]
fn steps_that_remain_are_the_most_that_fit() {
    let noise_multiplier = NoiseMultiplier::new(1.1).unwrap();
    let event = Event::Gaussian { sampling_rate: rate(0.01), noise_multiplier, steps: 1 };
    for accounting in [Accounting::Renyi, Accounting::Tight] {
        let steps = runs_within(&limit(2.0, 1e-5), &event, &Composition::new(), accounting);
        assert!(steps > 100);
        let cost = |steps| cost(0.01, 1.1, steps, 1e-5, &Composition::new(), accounting);
        assert!(cost(steps) <= 2.0 && cost(steps + 1) > 2.0 * (1.0 - 1e-3), "{steps}");
    }
    let spent = Composition::new().with(&event.with_count(1_000_000));
    assert_eq!(runs_within(&limit(2.0, 1e-5), &event, &spent, Accounting::Tight), 0);
}

#[test]
fn plans_say_what_they_cost() {
    let plan = DpSgdPlan::for_target(&limit(4.0, 1e-5), 1.2, rate(0.02), 1500).unwrap();
    plan.check().unwrap();
    assert_eq!(plan.expected_patients(1200), 24.0);
    let too_good = DpSgdPlan { epsilon: Epsilon::new(3.5).unwrap(), ..plan };
    let error = too_good.check().unwrap_err();
    assert!(matches!(error, PlanError::Understated { cost, .. } if cost > 3.9 && cost < 4.01), "{error}");
    for bad in [DpSgdPlan { clip_norm: 0.0, ..plan }, DpSgdPlan { steps: 0, ..plan }] {
        assert!(matches!(bad.check(), Err(PlanError::Field(_))));
    }
    // Noise for float sums is a little larger than for exact ones.
    let (float, exact) = (plan.noise(1_000_000).unwrap(), plan.exact_noise().unwrap());
    let sigma = plan.noise_multiplier.get() * 1.2;
    assert_eq!(exact.standard_deviation(), sigma);
    let grown = float.standard_deviation() / sigma;
    assert!(grown > 1.0 && grown < 1.006, "{grown}");
    // It covers the sensitivity that rounding to its grid leaves.
    assert!(float.standard_deviation() >= plan.noise_multiplier.get() * (1.2 + float.grid() * 1000.0));
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<DpSgdPlan>(&json).unwrap(), plan);
    assert!(serde_json::from_str::<DpSgdPlan>(&json.replace("\"steps\"", "\"stepz\"")).is_err());
}
