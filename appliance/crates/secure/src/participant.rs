//! One site in one round with secure aggregation.

use crate::memory::{GivenUp, Memory};
use medinet_model::ParameterLayout;
use medinet_privacy::PrivacyReport;
use medinet_secagg::site::{Advertised, Agreed, KeysShared, Masked};
use medinet_secagg::{
    Adversary, AgreementList, DecodeError, Error, Fault, KeyList, Message, RingVector, SessionId,
    SessionParameters, ShareDelivery, SignFailure, Signer as _, SitePolicy, Survivors,
};
use medinet_types::{BlobDigest, FederationId, SiteId, UnixMillis};
use medinet_update::SecureUpdate;
use medinet_wire::blob::BlobManifest;
use medinet_wire::envelope::{Signer, Verifier};
use medinet_wire::message::{RoundPlan, SiteMetrics};
use medinet_wire::secure::{
    Abandonment, AbandonmentCertificate, AggregatorStep, EnrolledSigner, EnrolledSites, KEYS_PART_BYTES,
    SecurePlan, SecurePlanError, SiteStep, abandonment_bytes, session_parameters,
};
use rand_core::CryptoRng;
use std::sync::Arc;
use std::time::Duration;

/// Longest reason that is sent, in characters.
const MAX_REASON_CHARS: usize = 500;
/// Parts of the longest key list: 4,096 sites with the longest credentials and signatures.
const MAX_KEY_PARTS: u16 = 160;

/// Who takes part in what, and by whose word.
pub struct Setup {
    /// The round as it was announced.
    pub plan: RoundPlan,
    /// This site's federation.
    pub federation: FederationId,
    /// This site.
    pub site: SiteId,
    /// What the hospital insists on.
    pub policy: SitePolicy,
    /// The site's enrolled identity.
    pub signer: Arc<dyn Signer>,
    /// The federation's authority.
    pub trust: Arc<dyn Verifier>,
    /// How long a word waits for an answer before it is said again.
    pub repeat_after: Duration,
}

/// Why a site takes no part in a round; the text goes to the aggregator's operator.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The plan cannot work.
    #[error(transparent)]
    Plan(#[from] SecurePlanError),
    /// The round is of another federation.
    #[error("the round's sessions are of federation {got}, this site is in {expected}")]
    Federation {
        /// This site's.
        expected: FederationId,
        /// The plan's.
        got: FederationId,
    },
    /// Too few sites for the site's policy.
    #[error("the round sums {asked} sites or more, this site asks for at least {least}")]
    Cohort {
        /// The round's minimum, of a group where there are groups.
        asked: u32,
        /// The site's.
        least: u16,
    },
    /// The plan withstands less than the site's policy asks for.
    #[error("the round's secure aggregation withstands less than this site asks for: {0}")]
    Assumptions(&'static str),
    /// The update is not one of this plan: our own program is at fault.
    #[error("expected an update of {expected} coordinates, got {got}")]
    Update {
        /// Coordinates of the session.
        expected: u32,
        /// Coordinates of the update.
        got: usize,
    },
}

/// Something that the participant reacts to.
#[derive(Debug, Clone)]
pub enum Input {
    /// Time has passed; about once a second.
    Tick,
    /// The aggregator's word in this round, from a verified envelope.
    Heard(AggregatorStep),
    /// The aggregator says that the round counts this site.
    Accepted,
}

/// Something for the host to do, in order, each before the next.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Make these bytes durable, in place of the earlier ones ([`Memory::from_bytes`]). Nothing after it may happen before.
    Persist(Vec<u8>),
    /// Keep the masked update ready to be pulled.
    Hold(MaskedUpdate),
    /// Nobody pulls it any more.
    Release(BlobDigest),
    /// Say this to the aggregator.
    Send(Word),
    /// The round counts this site: what error feedback has lost is final.
    Counted,
    /// The aggregator broke the protocol: the site says nothing more in this round, restarts or not. A person should look before the next one, which
    /// begins by itself.
    Stopped {
        /// Why.
        reason: String,
    },
}

/// What a site says in a round with secure aggregation. Only the protocol makes one, so that nobody else can put bytes of their own into it.
#[derive(Debug, Clone, PartialEq)]
pub struct Word(SiteStep);

impl Word {
    /// The word itself.
    #[must_use]
    pub fn step(&self) -> &SiteStep {
        &self.0
    }

    /// The word itself.
    #[must_use]
    pub fn into_step(self) -> SiteStep {
        self.0
    }
}

/// An update under masks: all that leaves a site of an update in a round with secure aggregation. Only the protocol makes one.
#[derive(Clone, PartialEq, Eq)]
pub struct MaskedUpdate(Vec<u8>);

impl MaskedUpdate {
    /// The bytes to send, an encoded `medinet_secagg::MaskedInput`.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its name and chunks.
    #[must_use]
    pub fn manifest(&self) -> BlobManifest {
        BlobManifest::of(&self.0)
    }
}

impl std::fmt::Debug for MaskedUpdate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MaskedUpdate({} bytes)", self.0.len())
    }
}

/// How far a site is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It waits for a session.
    Ready,
    /// A session is under way.
    InSession {
        /// Which attempt.
        attempt: u32,
    },
    /// It has agreed to a sum that was not opened, and waits for the next round.
    Spent,
    /// The round counts it.
    Counted,
    /// The aggregator broke the protocol.
    Stopped,
}

enum State {
    Ready,
    Advertised { session: SessionParameters, keys: KeyParts, state: Box<Advertised> },
    Shared { session: SessionParameters, list: KeyList, state: Box<KeysShared> },
    Masked { session: SessionParameters, list: KeyList, input: BlobDigest, state: Box<Masked> },
    Agreed { session: SessionParameters, input: BlobDigest, state: Box<Agreed> },
    Unmasked { session: SessionParameters },
    Spent,
    Counted,
    Stopped,
}

/// A key list as it comes.
#[derive(Default)]
struct KeyParts(Vec<Option<Vec<u8>>>);

impl KeyParts {
    /// Takes a part; the whole when it is the last one.
    fn add(&mut self, part: u16, parts: u16, bytes: Vec<u8>) -> Option<Vec<u8>> {
        if !(1..=MAX_KEY_PARTS).contains(&parts) || part >= parts || bytes.len() > KEYS_PART_BYTES {
            return None;
        }
        if self.0.len() != usize::from(parts) {
            self.0 = vec![None; parts.into()];
        }
        self.0[usize::from(part)] = Some(bytes);
        let whole: Option<Vec<&[u8]>> = self.0.iter().map(Option::as_deref).collect();
        whole.map(|parts| parts.concat())
    }
}

/// A site in a round with secure aggregation; see the crate.
pub struct Participant {
    setup: Setup,
    secure: SecurePlan,
    /// The stronger of the plan's and the site's demands.
    policy: SitePolicy,
    update: SecureUpdate,
    base_metrics: Option<SiteMetrics>,
    privacy: Option<PrivacyReport>,
    memory: Memory,
    given_up: Vec<GivenUp>,
    /// The newest attempt that is over for this site.
    left: u32,
    state: State,
    /// The last word, said again until the next message comes.
    word: Option<SiteStep>,
    said_at: UnixMillis,
    /// When the site gives up a session that does not go on.
    gives_up_at: UnixMillis,
}

impl std::fmt::Debug for Participant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Participant").field("standing", &self.standing()).finish_non_exhaustive()
    }
}

/// Why a site leaves a session.
enum Trouble {
    Protocol(Error),
    Decode(DecodeError),
    /// The session has more sites than the round was announced for; how many, and how many at most.
    Crowd(usize, u32),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Protocol(error)
    }
}

impl From<DecodeError> for Trouble {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

impl Setup {
    /// Checks a round against the site's policy; before anything is trained.
    ///
    /// # Errors
    /// Says what the round falls short of.
    pub fn check(&self) -> Result<(), Refusal> {
        let session = session_parameters(&self.plan, 1, 0)?;
        if session.federation != self.federation {
            return Err(Refusal::Federation { expected: self.federation.clone(), got: session.federation });
        }
        // With groups, of the sites of one group: they are who hides this one.
        let asked = self.plan.aggregation.least_in_sum(self.plan.min_sites);
        let least = self.policy.minimum_cohort.max(self.policy.minimum_survivors);
        if asked < u32::from(least) {
            return Err(Refusal::Cohort { asked, least });
        }
        let plan =
            self.plan.aggregation.secure().ok_or(SecurePlanError::Session("none is asked for".into()))?;
        let (asked, plan) = (self.policy.assumptions, plan.assumptions);
        let short = |holds: bool, what| if holds { Ok(()) } else { Err(Refusal::Assumptions(what)) };
        short(plan.adversary == Adversary::Malicious || plan.adversary == asked.adversary, "adversary")?;
        short(plan.corrupt_permille >= asked.corrupt_permille, "corrupt_permille")?;
        short(plan.colluders >= asked.colluders, "colluders")?;
        short(plan.security_bits >= asked.security_bits, "security_bits")?;
        short(plan.grinding_bits >= asked.grinding_bits, "grinding_bits")
    }
}

impl Participant {
    /// A site that has trained, or that comes back after a restart. `update` is the same for all attempts and restarts, `memory` what was
    /// last persisted; both empty or fresh in a new round.
    ///
    /// # Errors
    /// When the round falls short of the site's policy, or the update is not one of its plan.
    pub fn new(
        setup: Setup,
        update: SecureUpdate,
        base_metrics: Option<SiteMetrics>,
        memory: Memory,
    ) -> Result<Self, Refusal> {
        setup.check()?;
        let secure = setup.plan.aggregation.secure().cloned();
        let secure = secure.ok_or(SecurePlanError::Session("none is asked for".into()))?;
        let session = session_parameters(&setup.plan, 1, 0)?;
        if update.coordinates() != session.coordinates as usize {
            return Err(Refusal::Update { expected: session.coordinates, got: update.coordinates() });
        }
        let parameters = ParameterLayout::of(&setup.plan.spec.network);
        let parameters = parameters.map_err(|e| SecurePlanError::Session(e.to_string()))?.len();
        if update.bits() != secure.codec.bits || update.coordinates() != secure.codec.coordinates(parameters)
        {
            return Err(Refusal::Update { expected: session.coordinates, got: update.coordinates() });
        }
        // The plan's assumptions are at least the policy's, so what holds under them holds under the policy.
        let policy = SitePolicy { assumptions: secure.assumptions, ..setup.policy };
        // A kill has ended every session: what was not agreed to is given up.
        let open =
            memory.sessions.iter().filter(|session| !session.agreed).filter_map(|session| session.list());
        let given_up = open.filter_map(|list| GivenUp::of(&list, &setup.site, true)).collect();
        let state = match &memory {
            memory if memory.is_stopped() => State::Stopped,
            memory if memory.is_spent() => State::Spent,
            _ => State::Ready,
        };
        let left = memory.entered;
        Ok(Self {
            setup,
            secure,
            policy,
            update,
            base_metrics,
            privacy: None,
            memory,
            given_up,
            left,
            state,
            word: None,
            said_at: UnixMillis(0),
            gives_up_at: UnixMillis(u64::MAX),
        })
    }

    /// Says with every [`SiteStep::Ready`] what the site has spent of its privacy budget for the task, this round included.
    #[must_use]
    pub fn reporting(self, privacy: Option<PrivacyReport>) -> Self {
        Self { privacy, ..self }
    }

    /// How far the site is.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match &self.state {
            State::Ready => Standing::Ready,
            State::Spent => Standing::Spent,
            State::Counted => Standing::Counted,
            State::Stopped => Standing::Stopped,
            State::Advertised { session, .. }
            | State::Shared { session, .. }
            | State::Masked { session, .. }
            | State::Agreed { session, .. }
            | State::Unmasked { session } => Standing::InSession { attempt: session.attempt },
        }
    }

    /// Reacts to one input at time `now` and says what to do, in order.
    #[must_use = "outputs must be carried out, in order"]
    pub fn handle(&mut self, now: UnixMillis, input: Input, rng: &mut impl CryptoRng) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Tick => self.tick(now, &mut out),
            Input::Accepted => self.accepted(&mut out),
            Input::Heard(step) => self.heard(now, step, rng, &mut out),
        }
        out
    }

    fn tick(&mut self, now: UnixMillis, out: &mut Vec<Output>) {
        if now >= self.gives_up_at {
            self.leave(now, out);
        }
        match &self.state {
            State::Counted | State::Stopped => return,
            State::Ready if self.word.is_none() => return self.say_ready(now, out),
            State::Spent if self.word.is_none() => return self.say(now, SiteStep::Spent, out),
            _ => {}
        }
        if now.since(self.said_at) >= self.setup.repeat_after
            && let Some(word) = self.word.clone()
        {
            self.say(now, word, out);
        }
    }

    fn say(&mut self, now: UnixMillis, word: SiteStep, out: &mut Vec<Output>) {
        self.said_at = now;
        self.word = Some(word.clone());
        out.push(Output::Send(Word(word)));
    }

    /// The site is ready, and gives up in writing what it has given up.
    fn say_ready(&mut self, now: UnixMillis, out: &mut Vec<Output>) {
        let signer = EnrolledSigner(self.setup.signer.as_ref());
        let signed = |given_up: &GivenUp| -> Result<Abandonment, SignFailure> {
            let GivenUp { session, key_list, sites, member, committed } = given_up.clone();
            let signature = signer.sign(&abandonment_bytes(session, &key_list))?;
            let credential = signer.credential();
            Ok(Abandonment { session, key_list, sites, member, committed, credential, signature })
        };
        // One that the key refuses to sign is signed with the next word; until then the site cannot enter a session.
        let abandonments: Result<Vec<_>, _> = self.given_up.iter().map(signed).collect();
        match abandonments {
            Ok(abandonments) => {
                let (base_metrics, privacy) = (self.base_metrics, self.privacy);
                self.say(now, SiteStep::Ready { base_metrics, privacy, left: self.left, abandonments }, out);
            }
            Err(_) => self.word = None,
        }
    }

    fn accepted(&mut self, out: &mut Vec<Output>) {
        // Nobody can count what was never sent.
        if self.memory.is_committed() && !matches!(self.state, State::Counted | State::Stopped) {
            if let State::Masked { input, .. } | State::Agreed { input, .. } = &self.state {
                out.push(Output::Release(*input));
            }
            self.rest(State::Counted);
            out.push(Output::Counted);
        }
    }

    fn rest(&mut self, state: State) {
        self.state = state;
        self.word = None;
        self.gives_up_at = UnixMillis(u64::MAX);
    }

    /// Leaves the session, if there is one, and with it everything secret.
    fn leave(&mut self, now: UnixMillis, out: &mut Vec<Output>) {
        let state = std::mem::replace(&mut self.state, State::Ready);
        let (session, list, committed) = match state {
            State::Advertised { session, .. } => (session, None, false),
            State::Shared { session, list, .. } => (session, Some(list), false),
            State::Masked { session, list, input, .. } => {
                out.push(Output::Release(input));
                (session, Some(list), true)
            }
            State::Agreed { input, .. } => {
                out.push(Output::Release(input));
                self.rest(State::Spent);
                return self.say(now, SiteStep::Spent, out);
            }
            State::Unmasked { .. } => {
                self.rest(State::Spent);
                return self.say(now, SiteStep::Spent, out);
            }
            other => {
                self.state = other;
                return;
            }
        };
        self.left = self.left.max(session.attempt);
        self.given_up.extend(list.and_then(|list| GivenUp::of(&list, &self.setup.site, committed)));
        self.rest(State::Ready);
        self.say_ready(now, out);
    }

    fn attempt(&self) -> Option<u32> {
        match self.standing() {
            Standing::InSession { attempt } => Some(attempt),
            _ => None,
        }
    }

    fn heard(
        &mut self,
        now: UnixMillis,
        step: AggregatorStep,
        rng: &mut impl CryptoRng,
        out: &mut Vec<Output>,
    ) {
        match step {
            AggregatorStep::Begin { attempt, group, abandoned } => {
                self.begin(now, attempt, group, &abandoned, rng, out);
            }
            AggregatorStep::Abandon { attempt } => self.abandon(now, attempt, out),
            step => {
                let attempt = self.attempt().unwrap_or(self.left);
                if let Err(trouble) = self.proceed(now, step, rng, out) {
                    self.trouble(now, attempt, &trouble, out);
                }
            }
        }
    }

    fn abandon(&mut self, now: UnixMillis, attempt: u32, out: &mut Vec<Output>) {
        match (&self.state, self.attempt()) {
            (State::Ready, _) if attempt > self.left && attempt <= self.secure.max_attempts => {
                self.left = attempt;
                self.say_ready(now, out);
            }
            (State::Ready, _) => self.say_ready(now, out),
            (State::Spent, _) => self.say(now, SiteStep::Spent, out),
            (_, Some(current)) if attempt >= current => self.leave(now, out),
            _ => {}
        }
    }

    fn begin(
        &mut self,
        now: UnixMillis,
        attempt: u32,
        group: u16,
        abandoned: &[AbandonmentCertificate],
        rng: &mut impl CryptoRng,
        out: &mut Vec<Output>,
    ) {
        match self.attempt() {
            // Its answer was lost.
            Some(current) if attempt == current => {
                if let (State::Advertised { .. }, Some(word)) = (&self.state, self.word.clone()) {
                    self.say(now, word, out);
                }
                return;
            }
            Some(current) if attempt < current => return,
            // The session is over and nobody said so. Once that is in writing, there will be another call.
            Some(_) => return self.leave(now, out),
            None => {}
        }
        match self.state {
            State::Ready => {}
            State::Spent => return self.say(now, SiteStep::Spent, out),
            _ => return,
        }
        if attempt <= self.left || attempt > self.secure.max_attempts {
            return self.say_ready(now, out);
        }
        let trust = EnrolledSites { trust: self.setup.trust.as_ref(), now };
        if !self.memory.all_dead(abandoned, &self.secure.assumptions, &trust) {
            // An earlier session with this very update could still open.
            return self.say_ready(now, out);
        }
        let signer = EnrolledSigner(self.setup.signer.as_ref());
        let started = session_parameters(&self.setup.plan, attempt, group).ok().map(|session| {
            let site = self.setup.site.clone();
            Advertised::start(session.clone(), site, self.policy, &signer, rng)
                .map(|started| (session, started))
        });
        match started {
            Some(Ok((session, (advertisement, state)))) => {
                let keys = KeyParts::default();
                self.state = State::Advertised { session, keys, state: Box::new(state) };
                let phases =
                    4 * u64::from(self.secure.message_seconds) + u64::from(self.secure.input_seconds);
                self.memory.entered = attempt;
                out.push(Output::Persist(self.memory.to_bytes()));
                self.gives_up_at = now.after(Duration::from_secs(2 * phases));
                self.say(now, SiteStep::Advertisement(advertisement.encode()), out);
            }
            Some(Err(error)) => self.trouble(now, attempt, &error.into(), out),
            // The plan is good, as `new` has seen, so there is no such group: an honest aggregator names none of these.
            None => {}
        }
    }

    /// Takes the next message of the session. One of another session or of a step that is done is a repetition.
    fn proceed(
        &mut self,
        now: UnixMillis,
        step: AggregatorStep,
        rng: &mut impl CryptoRng,
        out: &mut Vec<Output>,
    ) -> Result<(), Trouble> {
        let trust = EnrolledSites { trust: self.setup.trust.as_ref(), now };
        let signer = EnrolledSigner(self.setup.signer.as_ref());
        let state = std::mem::replace(&mut self.state, State::Ready);
        match (state, step) {
            (
                State::Advertised { session, mut keys, state },
                AggregatorStep::Keys { session: named, part, parts, bytes },
            ) => {
                let whole = if named == session.id() { keys.add(part, parts, bytes) } else { None };
                let Some(bytes) = whole else {
                    self.state = State::Advertised { session, keys, state };
                    return Ok(());
                };
                let list = KeyList::decode(&bytes)?;
                // Of more sites more may collude: what the noise of the fewest survivors is counted on would not hold.
                let plan = &self.setup.plan;
                let most = plan.aggregation.most_in_sum(plan.max_sites);
                if list.members.len() > most as usize {
                    return Err(Trouble::Crowd(list.members.len(), most));
                }
                let (message, state) = state.share_keys(list.clone(), &trust, rng)?;
                self.state = State::Shared { session, list, state: Box::new(state) };
                self.say(now, SiteStep::KeyShares(message.encode()), out);
            }
            (State::Shared { session, list, state }, AggregatorStep::Shares(bytes)) => {
                let Some(delivery) = in_session::<ShareDelivery>(&bytes, session.id())? else {
                    self.state = State::Shared { session, list, state };
                    return Ok(());
                };
                let input = RingVector::from_values(session.width, self.update.values());
                let (message, state) = match state.mask(delivery, input) {
                    Ok(masked) => masked,
                    Err(error) => {
                        // Others may have put their updates into it, and need this site's word that it can never open.
                        self.given_up.extend(GivenUp::of(&list, &self.setup.site, false));
                        return Err(error.into());
                    }
                };
                let masked = MaskedUpdate(message);
                let manifest = masked.manifest();
                self.memory.commit(session.attempt, &list);
                out.push(Output::Persist(self.memory.to_bytes()));
                out.push(Output::Hold(masked));
                let (id, input) = (session.id(), manifest.digest);
                self.state = State::Masked { session, list, input, state: Box::new(state) };
                self.say(now, SiteStep::MaskedInput { session: id, input: manifest }, out);
            }
            (State::Masked { session, list, input, state }, AggregatorStep::Survivors(bytes)) => {
                let Some(survivors) = in_session::<Survivors>(&bytes, session.id())? else {
                    self.state = State::Masked { session, list, input, state };
                    return Ok(());
                };
                match state.agree(survivors, &signer) {
                    Ok((message, state)) => {
                        self.memory.agree(session.attempt);
                        out.push(Output::Persist(self.memory.to_bytes()));
                        self.state = State::Agreed { session, input, state: Box::new(state) };
                        self.say(now, SiteStep::Agreement(message.encode()), out);
                    }
                    Err(error) => {
                        out.push(Output::Release(input));
                        self.given_up.extend(GivenUp::of(&list, &self.setup.site, true));
                        return Err(error.into());
                    }
                }
            }
            (State::Agreed { session, input, state }, AggregatorStep::Agreements(bytes)) => {
                let Some(list) = in_session::<AgreementList>(&bytes, session.id())? else {
                    self.state = State::Agreed { session, input, state };
                    return Ok(());
                };
                out.push(Output::Release(input));
                let (message, _) = state.unmask(list, &trust)?;
                self.state = State::Unmasked { session };
                self.say(now, SiteStep::Unmasking(message.encode()), out);
            }
            (state, _) => self.state = state,
        }
        Ok(())
    }

    /// The session is over for this site, whose secrets are gone with its state.
    fn trouble(&mut self, now: UnixMillis, attempt: u32, trouble: &Trouble, out: &mut Vec<Output>) {
        let (fault, reason) = match trouble {
            Trouble::Protocol(error) => (error.fault().clone(), error.to_string()),
            Trouble::Decode(error) => (Fault::Server, error.to_string()),
            Trouble::Crowd(got, most) => (
                Fault::Server,
                format!("the key list: expected at most {most} sites, as announced, got {got}"),
            ),
        };
        let blames = match &fault {
            Fault::Site(site) => Some(site.clone()),
            _ => None,
        };
        self.left = self.left.max(attempt);
        if fault == Fault::Server {
            self.memory.stopped = true;
            out.push(Output::Persist(self.memory.to_bytes()));
        }
        let short = reason.chars().take(MAX_REASON_CHARS).collect();
        out.push(Output::Send(Word(SiteStep::Failed { attempt, blames, reason: short })));
        if fault == Fault::Server {
            self.rest(State::Stopped);
            out.push(Output::Stopped { reason });
        } else if self.memory.is_spent() {
            self.rest(State::Spent);
            self.say(now, SiteStep::Spent, out);
        } else {
            self.rest(State::Ready);
            self.say_ready(now, out);
        }
    }
}

/// Decodes a message; `None` when it belongs to another session.
fn in_session<M: Message>(bytes: &[u8], session: SessionId) -> Result<Option<M>, DecodeError> {
    let message = M::decode(bytes)?;
    Ok((message.session() == session).then_some(message))
}
