//! Lines go through a bounded queue to a thread that writes them.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait; at about 200 bytes each, below 2 MB.
const QUEUE_LINES: usize = 8192;

/// How long the end of the program waits for the log to be written.
const PATIENCE_AT_END: Duration = Duration::from_secs(2);

enum Item {
    Line(Vec<u8>),
    End,
}

/// Makes a writer per event; each event is one line in the queue.
#[derive(Clone)]
pub(crate) struct QueueWriter {
    queue: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

/// One event as it is formatted; queued when dropped.
pub(crate) struct Line<'a> {
    text: Vec<u8>,
    to: &'a QueueWriter,
}

/// The writing side; dropped, it waits until what is queued is written, or gives up after [`PATIENCE_AT_END`].
pub(crate) struct Drain {
    queue: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

pub(crate) fn start(sink: impl Write + Send + 'static) -> io::Result<(QueueWriter, Drain)> {
    let (queue, lines) = sync_channel(QUEUE_LINES);
    let dropped = Arc::new(AtomicU64::new(0));
    let counter = dropped.clone();
    let thread =
        thread::Builder::new().name("log".into()).spawn(move || write_lines(&lines, sink, &counter))?;
    let drain = Drain { queue: queue.clone(), dropped: dropped.clone(), thread: Some(thread) };
    Ok((QueueWriter { queue, dropped }, drain))
}

fn write_lines(lines: &Receiver<Item>, mut sink: impl Write, dropped: &AtomicU64) {
    let mut told = 0;
    while let Ok(Item::Line(line)) = lines.recv() {
        // There is nobody to tell when standard error itself fails.
        let _ = sink.write_all(&line);
        let now = dropped.load(Ordering::Relaxed);
        if now > told {
            let _ = writeln!(
                sink,
                "log: {} lines were dropped because they could not be written in time",
                now - told
            );
            told = now;
        }
    }
    let _ = sink.flush();
}

impl Drain {
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        // A reader that has stalled for good must not keep the program from ending.
        let give_up = Instant::now() + PATIENCE_AT_END;
        let mut told = false;
        while let Some(thread) = self.thread.take() {
            told = told || !matches!(self.queue.try_send(Item::End), Err(TrySendError::Full(_)));
            if thread.is_finished() {
                let _ = thread.join();
            } else if Instant::now() < give_up {
                self.thread = Some(thread);
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl<'a> MakeWriter<'a> for QueueWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { text: Vec::with_capacity(256), to: self }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let text = std::mem::take(&mut self.text);
        if !text.is_empty()
            && let Err(TrySendError::Full(_)) = self.to.queue.try_send(Item::Line(text))
        {
            self.to.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Condvar, Mutex};

    /// A sink that does not take anything until it is let go.
    #[derive(Clone, Default)]
    struct Stalled(Arc<Shared>);

    #[derive(Default)]
    struct Shared {
        state: Mutex<State>,
        changed: Condvar,
    }

    #[derive(Default)]
    struct State {
        open: bool,
        written: Vec<u8>,
    }

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let Shared { state, changed } = &*self.0;
            let mut state = changed.wait_while(state.lock().unwrap(), |state| !state.open).unwrap();
            state.written.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_reader_costs_lines_and_never_time_or_memory() {
        let sink = Stalled::default();
        let (writer, drain) = start(sink.clone()).unwrap();
        for number in 0..QUEUE_LINES + 100 {
            writeln!(writer.make_writer(), "line {number}").unwrap();
        }
        let dropped = drain.dropped();
        assert!((99..=100).contains(&dropped), "{dropped} lines dropped");
        sink.0.state.lock().unwrap().open = true;
        sink.0.changed.notify_all();
        drop(drain);
        let text = String::from_utf8(sink.0.state.lock().unwrap().written.clone()).unwrap();
        assert!(text.contains(&format!("log: {dropped} lines were dropped")));
        let kept = text.lines().filter(|line| line.starts_with("line ")).count() as u64;
        assert_eq!(kept + dropped, QUEUE_LINES as u64 + 100);
        assert!(text.starts_with("line 0\n"));
    }
}
