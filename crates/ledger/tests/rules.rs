//! Which record may follow which.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{
    closed, closed_as, evaluated, key, metrics, model, opened, registered, released, site, spec, started,
    story, task, votes_counted,
};
use medinet_ledger::vote::{Ballot, Objection, Quorum};
use medinet_ledger::{LedgerState, Record, RecordBody, RoundKind, RuleViolation as V};
use medinet_types::{Digest, ModelVersion, RoundNumber, UnixMillis};

fn state_after(bodies: &[RecordBody]) -> LedgerState {
    let mut state = LedgerState::new();
    for body in bodies {
        state.apply(&Record { at: UnixMillis(1), body: body.clone() }).unwrap();
    }
    state
}

fn violation(before: &[RecordBody], body: RecordBody) -> V {
    let mut state = state_after(before);
    let unchanged = state.clone();
    let violation = state.apply(&Record { at: UnixMillis(1), body }).unwrap_err();
    assert_eq!(state, unchanged, "a refused record changes nothing");
    violation
}

fn sites() -> Vec<RecordBody> {
    vec![started(), registered("east"), registered("north"), registered("west")]
}

fn with(more: impl IntoIterator<Item = RecordBody>) -> Vec<RecordBody> {
    sites().into_iter().chain(more).collect()
}

#[test]
fn the_story_is_allowed_and_adds_up() {
    let mut state = LedgerState::new();
    for record in story() {
        state.apply(&record).unwrap();
    }
    let on_ledger = state.task(&task()).unwrap();
    assert_eq!(on_ledger.released, Some(ModelVersion(3)));
    assert_eq!(on_ledger.newest(), ModelVersion(3));
    assert_eq!(on_ledger.open, None);
    assert_eq!(on_ledger.models[&ModelVersion(3)].base, Some(ModelVersion(2)));
    assert_eq!(state.dataset(&task(), &site("east")).unwrap().images_per_class, [120, 80]);
    assert_eq!(state.records(), story().len() as u64);
}

#[test]
fn the_state_hash_is_the_same_everywhere_and_tells_every_record() {
    let mut state = LedgerState::new();
    let mut seen = vec![state.state_hash()];
    for record in story() {
        // Through bytes, as another program reads them.
        let record = Record::decode(&record.encode().unwrap()).unwrap();
        state.apply(&record).unwrap();
        assert!(!seen.contains(&state.state_hash()));
        seen.push(state.state_hash());
    }
    // A change of this value means that a contract and an embedded ledger of different versions disagree: raise versions.
    assert_eq!(state.state_hash().to_string(), GOLDEN_STATE_HASH);
}

const GOLDEN_STATE_HASH: &str = "9d08b760cc899e7f76f2eefbaf348a0bc4be6ce1c3bd41936e0dd7e859cbcda5";

#[test]
fn tasks_and_data_sets() {
    assert_eq!(violation(&[started()], started()), V::TaskStartedTwice(task()));
    assert_eq!(violation(&[registered("east")], registered("east")), V::DatasetRepeated(site("east")));
    assert_eq!(violation(&[], opened(1, RoundKind::Train, 0)), V::UnknownTask(task()));
    for counts in [vec![], vec![10], vec![10, 11], vec![10; 65]] {
        let mut body = registered("east");
        if let RecordBody::DatasetRegistered { images_per_class, .. } = &mut body {
            *images_per_class = counts;
        }
        assert_eq!(violation(&[], body), V::DatasetCounts);
    }
}

#[test]
fn rounds_open_in_order_on_a_known_model() {
    assert_eq!(
        violation(&with([opened(1, RoundKind::Train, 0)]), opened(2, RoundKind::Train, 0)),
        V::RoundStillOpen(RoundNumber(1))
    );
    assert!(matches!(violation(&sites(), opened(0, RoundKind::Train, 0)), V::RoundNumber { .. }));
    assert!(matches!(violation(&sites(), opened(1, RoundKind::Train, 1)), V::UnknownModel { .. }));
    let mut body = opened(1, RoundKind::Train, 0);
    if let RecordBody::RoundOpened { base, .. } = &mut body {
        *base = model(7);
    }
    assert!(matches!(violation(&sites(), body), V::UnknownModel { .. }));
    let mut body = opened(1, RoundKind::Train, 0);
    if let RecordBody::RoundOpened { min_sites, .. } = &mut body {
        *min_sites = 4;
    }
    assert_eq!(violation(&sites(), body), V::SiteLimits);
    let one_round = with([opened(1, RoundKind::Train, 0), closed(1, 0, &["east", "north"])]);
    assert!(matches!(violation(&one_round, opened(2, RoundKind::Train, 0)), V::OtherVersion { .. }));
    state_after(&one_round)
        .apply(&Record { at: UnixMillis(1), body: opened(2, RoundKind::Evaluate, 0) })
        .unwrap();
}

#[test]
fn a_round_closes_only_after_it_opened_with_sites_that_have_data() {
    assert!(matches!(
        violation(&sites(), closed(1, 0, &["east", "north"])),
        V::RoundNotOpen { open: None, .. }
    ));
    let open = with([opened(1, RoundKind::Train, 0)]);
    assert!(matches!(violation(&open, closed(2, 0, &["east", "north"])), V::RoundNotOpen { .. }));
    assert_eq!(violation(&open, closed(1, 1, &["east", "north"])), V::OtherBase(model(1)));
    assert!(matches!(violation(&open, closed(1, 0, &["east"])), V::SiteCount { min: 2, max: 3, got: 1 }));
    assert_eq!(violation(&open, closed(1, 0, &["east", "south"])), V::NoDataset(site("south")));
    assert_eq!(violation(&open, closed(1, 0, &["north", "east"])), V::SiteOrder);
    assert_eq!(violation(&open, closed(1, 0, &["east", "east"])), V::SiteOrder);
    let mut body = closed(1, 0, &["east", "north"]);
    if let RecordBody::RoundClosed { version, .. } = &mut body {
        *version = ModelVersion(2);
    }
    assert!(matches!(violation(&open, body), V::Version { .. }));
    let mut body = closed(1, 0, &["east", "north"]);
    if let RecordBody::RoundClosed { examples, .. } = &mut body {
        *examples = 1;
    }
    assert_eq!(violation(&open, body), V::Examples);
    let evaluation = with([opened(1, RoundKind::Evaluate, 0)]);
    assert!(matches!(violation(&evaluation, closed(1, 0, &["east", "north"])), V::RoundNotOpen { .. }));
    let abandoned = with([
        opened(1, RoundKind::Train, 0),
        RecordBody::RoundAbandoned { task: task(), round: RoundNumber(1) },
    ]);
    assert!(matches!(violation(&abandoned, closed(1, 0, &["east", "north"])), V::RoundNotOpen { .. }));
    assert!(matches!(violation(&abandoned, opened(1, RoundKind::Train, 0)), V::RoundNumber { .. }));
}

#[test]
fn only_a_round_result_that_was_accepted_is_released() {
    let trained = with([opened(1, RoundKind::Train, 0), closed(1, 0, &["east", "north"])]);
    assert_eq!(violation(&trained, released(1)), V::NotAccepted(ModelVersion(1)));
    assert!(matches!(violation(&trained, released(2)), V::UnknownModel { .. }));
    assert_eq!(violation(&trained, released(0)), V::NotARoundResult(ModelVersion(0)));
    let measured = |accepted| {
        let evaluation = [opened(2, RoundKind::Evaluate, 1), evaluated(2, 1, accepted)];
        trained.iter().cloned().chain(evaluation).collect::<Vec<_>>()
    };
    assert_eq!(violation(&measured(false), released(1)), V::NotAccepted(ModelVersion(1)));
    let accepted = measured(true);
    let mut other_spec = released(1);
    if let RecordBody::ModelReleased { spec, .. } = &mut other_spec {
        *spec = Digest::of(b"other");
    }
    assert_eq!(violation(&accepted, other_spec), V::OtherSpec);
    let twice: Vec<_> = accepted.into_iter().chain([released(1)]).collect();
    assert_eq!(violation(&twice, released(1)), V::ReleasedTwice(ModelVersion(1)));
}

#[test]
fn training_goes_back_to_the_newest_accepted_model_and_only_after_a_rejection() {
    let back = |round, version| RecordBody::WentBack {
        task: task(),
        round: RoundNumber(round),
        model: model(version),
        version: ModelVersion(version),
    };
    let sites_of = ["east", "north"];
    let one = with([
        opened(1, RoundKind::Train, 0),
        closed(1, 0, &sites_of),
        opened(2, RoundKind::Evaluate, 1),
        evaluated(2, 1, true),
        opened(3, RoundKind::Train, 1),
        closed(3, 1, &sites_of),
    ]);
    let then = |more: &[RecordBody]| [one.clone(), more.to_vec()].concat();
    // Not of a model that nobody has rejected, whether measured or not.
    let not_rejected = V::NotRejected { newest: ModelVersion(2), got: RoundNumber(3) };
    assert_eq!(violation(&one, back(3, 1)), not_rejected);
    let open = then(&[opened(4, RoundKind::Evaluate, 2)]);
    assert_eq!(violation(&open, back(4, 1)), V::RoundStillOpen(RoundNumber(4)));
    let accepted = then(&[opened(4, RoundKind::Evaluate, 2), evaluated(4, 2, true)]);
    assert!(matches!(violation(&accepted, back(4, 1)), V::NotRejected { .. }));
    // After the rejection: in that round, and to the accepted one.
    let rejected = then(&[opened(4, RoundKind::Evaluate, 2), evaluated(4, 2, false)]);
    assert!(matches!(violation(&rejected, back(3, 1)), V::NotRejected { .. }));
    assert_eq!(violation(&rejected, back(4, 0)), V::NotAccepted(ModelVersion(0)));
    assert_eq!(violation(&rejected, back(4, 2)), V::NotAccepted(ModelVersion(2)));
    assert!(matches!(violation(&rejected, opened(5, RoundKind::Train, 1)), V::OtherVersion { .. }));
    let mut went = rejected;
    went.push(back(4, 1));
    assert!(matches!(violation(&went, back(4, 1)), V::NotRejected { .. }));
    assert!(matches!(violation(&went, opened(5, RoundKind::Train, 2)), V::OtherVersion { .. }));
    // What follows is a version of its own, made of the accepted one.
    went.extend([opened(5, RoundKind::Train, 1), closed_as(5, 1, 3, &sites_of)]);
    let state = state_after(&went);
    let on_ledger = state.task(&task()).unwrap();
    assert_eq!((on_ledger.newest(), on_ledger.trains_from), (ModelVersion(3), ModelVersion(3)));
    assert_eq!(on_ledger.models[&ModelVersion(3)].base, Some(ModelVersion(1)));
    // Where nothing was accepted there is nothing to go back to.
    let first = with([
        opened(1, RoundKind::Train, 0),
        closed(1, 0, &sites_of),
        opened(2, RoundKind::Evaluate, 1),
        evaluated(2, 1, false),
    ]);
    assert_eq!(violation(&first, back(2, 0)), V::NotAccepted(ModelVersion(0)));
}

#[test]
fn reports_are_checked() {
    let open = with([opened(1, RoundKind::Evaluate, 0)]);
    for bad in [
        medinet_ledger::ReportedMetrics { auroc: Some(1.1), ..metrics() },
        medinet_ledger::ReportedMetrics { accuracy: f64::NAN, ..metrics() },
        medinet_ledger::ReportedMetrics { loss: f64::INFINITY, ..metrics() },
        medinet_ledger::ReportedMetrics { calibration_error: -0.1, ..metrics() },
    ] {
        let mut body = evaluated(1, 0, true);
        if let RecordBody::ModelEvaluated { reports, .. } = &mut body {
            reports[0].metrics = Some(bad);
        }
        assert_eq!(violation(&open, body), V::Metrics(site("east")));
    }
    let mut body = evaluated(1, 0, true);
    if let RecordBody::ModelEvaluated { reports, .. } = &mut body {
        reports[0].metrics = None;
    }
    assert_eq!(violation(&open, body), V::AcceptedUnmeasured);
    assert_eq!(violation(&open, evaluated(1, 1, true)), V::OtherBase(model(1)));
}

#[test]
fn time_does_not_run_backwards() {
    let mut state = LedgerState::new();
    state.apply(&Record { at: UnixMillis(5), body: started() }).unwrap();
    let early = Record { at: UnixMillis(4), body: registered("east") };
    assert!(matches!(state.apply(&early), Err(V::Time { .. })));
}

#[test]
fn nothing_names_a_patient_and_every_record_is_short_and_reads_back() {
    for record in story() {
        let bytes = record.encode().unwrap();
        assert!(bytes.len() < 600, "{} bytes", bytes.len());
        assert_eq!(Record::decode(&bytes).unwrap(), record);
        assert!(!record.summary().is_empty());
    }
    assert_eq!(spec().task, task());
    assert_eq!(key().origin(), "medinet/chest");
}

#[test]
fn no_model_is_accepted_against_the_votes() {
    let quorum = Some(Quorum { min_accepting: 2, min_accept_permille: 500 });
    let mut before: Vec<RecordBody> = story().into_iter().map(|record| record.body).collect();
    before.truncate(before.len() - 2);
    let accept = [("east", Ballot::Accept), ("west", Ballot::Accept)];
    let reject = [("east", Ballot::Accept), ("west", Ballot::Reject(Objection::AurocDrop))];
    let after = |votes: RecordBody| before.iter().cloned().chain([votes]).collect::<Vec<_>>();
    state_after(&[after(votes_counted(quorum, &accept)), vec![evaluated(4, 3, true), released(3)]].concat());
    assert_eq!(
        violation(&after(votes_counted(quorum, &reject)), evaluated(4, 3, true)),
        V::AcceptedAgainstVotes
    );
    state_after(&[after(votes_counted(quorum, &reject)), vec![evaluated(4, 3, false)]].concat());
    // Where votes do not decide they are on record all the same.
    state_after(&[after(votes_counted(None, &reject)), vec![evaluated(4, 3, true)]].concat());
    assert_eq!(
        violation(&after(votes_counted(quorum, &reject)), votes_counted(quorum, &accept)),
        V::VotesTwice(RoundNumber(4))
    );
    let stranger = [("east", Ballot::Accept), ("south", Ballot::Accept)];
    assert_eq!(violation(&before, votes_counted(quorum, &stranger)), V::NoDataset(site("south")));
    let twice = [("east", Ballot::Accept), ("east", Ballot::Accept)];
    assert_eq!(violation(&before, votes_counted(quorum, &twice)), V::SiteOrder);
    let closed = state_after(&[before.clone(), vec![evaluated(4, 3, false)]].concat());
    let late = Record { at: UnixMillis(1), body: votes_counted(quorum, &accept) };
    assert!(matches!(closed.clone().apply(&late), Err(V::RoundNotOpen { .. })));
}
