//! One attempt at a round: a session for each group, all at once.

use super::session::{Failure, Opened, Session};
use crate::effect::Outbox;
use medinet_types::{BlobDigest, SiteId, UnixMillis};
use medinet_wire::message::RoundPlan;
use medinet_wire::secure::{AbandonmentCertificate, AggregatorStep, session_parameters};
use std::collections::BTreeSet;

/// The sessions of one attempt. It is over when all of them are, however each has ended.
#[derive(Debug)]
pub(crate) struct Attempt {
    number: u32,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    sites: BTreeSet<SiteId>,
    /// `None` when it is over.
    session: Option<Box<Session>>,
}

/// Where a site is in an attempt.
pub(crate) enum Place<'a> {
    /// In a session that goes on.
    In(&'a mut Session),
    /// In a group whose session is over.
    Over,
    /// In no group.
    Outside,
}

/// A session that is over.
pub(crate) struct Ended {
    /// Its group.
    pub(crate) group: u16,
    /// How it ended.
    pub(crate) result: Result<Opened, Failure>,
    /// What is left of it.
    pub(crate) session: Box<Session>,
}

impl Attempt {
    /// Begins a session in each group. `proofs` are the certificates that a site needs before it enters one.
    pub(crate) fn begin(
        plan: &RoundPlan,
        number: u32,
        groups: Vec<BTreeSet<SiteId>>,
        proofs: impl Fn(&SiteId) -> Vec<AbandonmentCertificate>,
        now: UnixMillis,
    ) -> Result<Self, String> {
        let begin = |(group, sites): (usize, BTreeSet<SiteId>)| {
            let group = u16::try_from(group).map_err(|_| "too many groups".to_owned())?;
            let parameters = session_parameters(plan, number, group).map_err(|error| error.to_string())?;
            let cohort = sites.iter().map(|site| (site.clone(), proofs(site))).collect();
            let session = Session::begin(plan, group, parameters, cohort, now)?;
            Ok(Group { sites, session: Some(Box::new(session)) })
        };
        let groups: Result<Vec<Group>, String> = groups.into_iter().enumerate().map(begin).collect();
        Ok(Self { number, groups: groups? })
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// The sites of each group, by its number.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (u16, &BTreeSet<SiteId>)> {
        (0..).zip(self.groups.iter().map(|group| &group.sites))
    }

    /// What each site is called with.
    pub(crate) fn calls(&self) -> impl Iterator<Item = (&SiteId, AggregatorStep)> {
        let sessions = self.groups.iter().filter_map(|group| Some((group, group.session.as_ref()?)));
        sessions.flat_map(|(group, session)| group.sites.iter().map(|site| (site, session.begin_step(site))))
    }

    fn running(&self) -> impl Iterator<Item = &Session> {
        self.groups.iter().filter_map(|group| group.session.as_deref())
    }

    fn running_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.groups.iter_mut().filter_map(|group| group.session.as_deref_mut())
    }

    /// Masked inputs that are being pulled.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = BlobDigest> {
        self.running().flat_map(Session::blobs)
    }

    /// When the next phase closes; `None` when all sessions are over.
    pub(crate) fn until(&self) -> Option<UnixMillis> {
        self.running().map(Session::until).min()
    }

    pub(crate) fn place(&mut self, site: &SiteId) -> Place<'_> {
        match self.groups.iter_mut().find(|group| group.sites.contains(site)) {
            Some(Group { session: Some(session), .. }) => Place::In(session),
            Some(_) => Place::Over,
            None => Place::Outside,
        }
    }

    /// Whoever is said to be gone is not waited for.
    pub(crate) fn gone(&mut self, site: &SiteId) {
        if let Place::In(session) = self.place(site) {
            session.gone(site);
        }
    }

    /// A masked input is whole. Returns who broke the rules, and how.
    pub(crate) fn on_input(&mut self, blob: BlobDigest, bytes: &[u8]) -> Vec<(SiteId, String)> {
        self.running_mut().flat_map(|session| session.on_input(blob, bytes)).collect()
    }

    pub(crate) fn on_input_failed(&mut self, blob: BlobDigest) {
        self.running_mut().for_each(|session| session.on_input_failed(blob));
    }

    /// Closes phases that are due; the first session that is over by it, if any.
    pub(crate) fn advance(&mut self, out: &mut Outbox, now: UnixMillis) -> Option<Ended> {
        for (number, group) in (0..).zip(&mut self.groups) {
            let Some(session) = &mut group.session else { continue };
            let Some(result) = session.advance(out, now).transpose() else { continue };
            let session = group.session.take()?;
            return Some(Ended { group: number, result, session });
        }
        None
    }
}
