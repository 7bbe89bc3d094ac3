//! The server's side of a measured session, in a process of its own, so that its memory and its CPU time are its own. The sites' process starts
//! it and speaks with it over its standard input and output, in frames:
//!
//! ```text
//! kind (1 byte) | length of the site's name (2 bytes, little-endian) | name | length of the bytes (4 bytes, little-endian) | bytes
//! ```
//!
//! The sites send [`Kind::Message`], which is answered by [`Kind::Taken`], and end each of the five phases with [`Kind::Close`], which is answered by
//! what the server says then ([`Kind::Say`], to one site or, without a name, to all) and [`Kind::Closed`]. The bytes are those of
//! `medinet_secagg`'s messages, as a carrier would bring them.

use super::child::{Figures, own_memory};
use super::secagg_session::{Authority, Cohort, Times};
use anyhow::{Context as _, Result, bail, ensure};
use medinet_secagg::{Message, server};
use medinet_types::SiteId;
use std::io::{Read, Write};

/// The longest bytes of a frame: more than any message or sum of a measurement.
const MAX_FRAME_BYTES: u32 = 1 << 30;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// From a site.
    Message = 1,
    /// No more messages come in this phase.
    Close,
    /// The message was taken.
    Taken,
    /// To a site, or to all.
    Say,
    /// All is said.
    Closed,
    /// The packed sum.
    Sum,
    /// What was measured, as JSON.
    Figures,
    /// Why the session failed, as text.
    Failed,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Message,
        Self::Close,
        Self::Taken,
        Self::Say,
        Self::Closed,
        Self::Sum,
        Self::Figures,
        Self::Failed,
    ];
}

struct Frame {
    kind: Kind,
    site: Option<SiteId>,
    bytes: Vec<u8>,
}

fn write(out: &mut impl Write, kind: Kind, site: Option<&SiteId>, bytes: &[u8]) -> Result<()> {
    let name = site.map_or("", SiteId::as_str);
    out.write_all(&[kind as u8])?;
    out.write_all(&u16::try_from(name.len()).context("a site's name is short")?.to_le_bytes())?;
    out.write_all(name.as_bytes())?;
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= MAX_FRAME_BYTES);
    out.write_all(&length.context("a message of a session is below 1 GiB")?.to_le_bytes())?;
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

fn read(input: &mut impl Read) -> Result<Frame> {
    let mut array = [0; 3];
    input.read_exact(&mut array).context("the other side of the session is gone")?;
    let [kind, name @ ..] = array;
    let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind).context("no such kind of frame")?;
    let mut name = vec![0; u16::from_le_bytes(name).into()];
    input.read_exact(&mut name)?;
    let name = String::from_utf8(name)?;
    let site = if name.is_empty() { None } else { Some(SiteId::new(name)?) };
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    ensure!(length <= MAX_FRAME_BYTES, "expected a frame below 1 GiB, got {length} bytes");
    let mut bytes = vec![0; length as usize];
    input.read_exact(&mut bytes)?;
    Ok(Frame { kind, site, bytes })
}

/// What the sites hold of the server.
pub(super) struct ServerLink<R, W> {
    input: R,
    output: W,
}

/// How a session ended.
pub(super) struct Opened {
    /// The packed sum.
    pub(super) sum: Vec<u8>,
    /// What the server measured of itself.
    pub(super) figures: Figures,
}

impl<R: Read, W: Write> ServerLink<R, W> {
    pub(super) fn new(input: R, output: W) -> Self {
        Self { input, output }
    }

    /// Gives the server a site's message.
    ///
    /// # Errors
    /// When the server refuses it, or is gone.
    pub(super) fn send(&mut self, site: &SiteId, message: &[u8]) -> Result<()> {
        write(&mut self.output, Kind::Message, Some(site), message)?;
        self.expect(Kind::Taken).map(|_| ())
    }

    /// Ends a phase, and returns what the server says to whom.
    ///
    /// # Errors
    /// When the phase cannot be closed, or the server is gone.
    pub(super) fn close(&mut self) -> Result<Vec<(Option<SiteId>, Vec<u8>)>> {
        write(&mut self.output, Kind::Close, None, &[])?;
        let mut said = Vec::new();
        loop {
            let frame = read(&mut self.input)?;
            match frame.kind {
                Kind::Say => said.push((frame.site, frame.bytes)),
                Kind::Closed => return Ok(said),
                _ => return Err(unexpected(&frame)),
            }
        }
    }

    /// Ends a phase after which the server says one thing to all.
    ///
    /// # Errors
    /// As [`Self::close`].
    pub(super) fn close_to_all<M: Message>(&mut self) -> Result<M> {
        match self.close()?.as_slice() {
            [(None, bytes)] => Ok(M::decode(bytes)?),
            said => bail!("expected one {} to all sites, got {} messages", M::NAME, said.len()),
        }
    }

    /// Ends the last phase.
    ///
    /// # Errors
    /// When the sum cannot be opened, or the server is gone.
    pub(super) fn open(&mut self) -> Result<Opened> {
        write(&mut self.output, Kind::Close, None, &[])?;
        let sum = self.expect(Kind::Sum)?;
        let figures = self.expect(Kind::Figures)?;
        Ok(Opened { sum, figures: serde_json::from_slice(&figures)? })
    }

    fn expect(&mut self, kind: Kind) -> Result<Vec<u8>> {
        let frame = read(&mut self.input)?;
        if frame.kind == kind { Ok(frame.bytes) } else { Err(unexpected(&frame)) }
    }
}

fn unexpected(frame: &Frame) -> anyhow::Error {
    match frame.kind {
        Kind::Failed => anyhow::anyhow!("the server: {}", String::from_utf8_lossy(&frame.bytes)),
        kind => anyhow::anyhow!("the server said {kind:?} out of turn"),
    }
}

/// The server's part of a session: measures `server.wall` and `server.cpu`, all of its work in seconds, messages decoded and encoded too;
/// `unmask.wall` and `unmask.cpu`, its last step; and, where the system tells, `server.memory`, the most bytes that were resident up to the
/// sum, and `server.memory.before`, those before the session.
///
/// # Errors
/// When the session fails, which the sites are told too.
pub(super) fn serve(cohort: &Cohort, input: &mut impl Read, output: &mut impl Write) -> Result<()> {
    let ended = session(cohort, input, output);
    if let Err(error) = &ended {
        write(output, Kind::Failed, None, format!("{error:#}").as_bytes())?;
    }
    ended
}

fn session(cohort: &Cohort, input: &mut impl Read, output: &mut impl Write) -> Result<()> {
    let before = own_memory("VmRSS:");
    let (mut serving, mut unmask) = (Times::default(), Times::default());
    // Calls `take` with every message until the phase is to be closed.
    macro_rules! collect {
        ($site:ident, $message:ident => $take:expr) => {
            loop {
                let Frame { kind, site, bytes } = read(input)?;
                match (kind, &site) {
                    (Kind::Close, _) => break,
                    (Kind::Message, Some($site)) => {
                        let $message = bytes;
                        serving.of(|| -> Result<()> { Ok($take) })?;
                        write(output, Kind::Taken, None, &[])?;
                    }
                    _ => bail!("expected a site's message, got {kind:?}"),
                }
            }
        };
    }

    let mut phase = server::Advertising::new(cohort.parameters()?)?;
    collect!(site, message => phase.receive(site, Message::decode(&message)?, &Authority)?);
    let (list, mut phase) = serving.of(|| -> Result<_> {
        let (list, phase) = phase.close_with(cohort.topology())?;
        Ok((list.encode(), phase))
    })?;
    write(output, Kind::Say, None, &list)?;
    write(output, Kind::Closed, None, &[])?;
    drop(list);

    collect!(site, message => phase.receive(site, Message::decode(&message)?)?);
    let (deliveries, mut phase) = serving.of(|| phase.close())?;
    for (site, delivery) in deliveries {
        let bytes = serving.of(|| delivery.encode());
        write(output, Kind::Say, Some(&site), &bytes)?;
    }
    write(output, Kind::Closed, None, &[])?;

    collect!(site, message => phase.receive(site, &message)?);
    let (survivors, mut phase) = serving.of(|| phase.close())?;
    write(output, Kind::Say, None, &survivors.encode())?;
    write(output, Kind::Closed, None, &[])?;

    collect!(site, message => phase.receive(site, Message::decode(&message)?, &Authority)?);
    let (list, mut phase) = serving.of(|| phase.close())?;
    write(output, Kind::Say, None, &list.encode())?;
    write(output, Kind::Closed, None, &[])?;

    collect!(site, message => phase.receive(site, Message::decode(&message)?)?);
    let aggregate = unmask.of(|| phase.finish())?;
    let contributors = aggregate.contributors.len();
    let expected = usize::from(cohort.sites - cohort.lost);
    ensure!(contributors == expected, "expected the sum of {expected} sites, got {contributors}");
    let peak = own_memory("VmHWM:");

    let mut sum = Vec::new();
    aggregate.sum.pack_into(&mut sum);
    write(output, Kind::Sum, None, &sum)?;
    let mut figures = Figures::new();
    let total = |times: &[f64], last: &[f64]| vec![times.iter().chain(last).sum::<f64>()];
    figures.insert("server.wall".into(), total(&serving.wall, &unmask.wall));
    figures.insert("server.cpu".into(), total(&serving.cpu, &unmask.cpu));
    figures.extend(peak.map(|bytes| ("server.memory".into(), vec![bytes])));
    figures.extend(before.map(|bytes| ("server.memory.before".into(), vec![bytes])));
    unmask.into_figures("unmask", &mut figures);
    write(output, Kind::Figures, None, &serde_json::to_vec(&figures)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_as_they_were_written_and_others_are_refused() {
        let site = SiteId::new("site-1").expect("a name");
        let mut bytes = Vec::new();
        write(&mut bytes, Kind::Message, Some(&site), &[7; 300]).expect("written");
        write(&mut bytes, Kind::Close, None, &[]).expect("written");
        let mut input = bytes.as_slice();
        let frame = read(&mut input).expect("a frame");
        assert_eq!((frame.kind, frame.site, frame.bytes), (Kind::Message, Some(site), vec![7; 300]));
        let frame = read(&mut input).expect("a frame");
        assert_eq!((frame.kind, frame.site, frame.bytes.len()), (Kind::Close, None, 0));
        assert!(read(&mut input).is_err());
        for bad in
            [&[9, 0, 0, 0, 0, 0, 0][..], &[1, 0, 0, 255, 255, 255, 255], &[1, 2, 0, 0xC3, 0x28], &bytes[..40]]
        {
            assert!(read(&mut &bad[..]).is_err(), "{bad:?}");
        }
    }
}
