//! One side of a comparison is a process of its own, so that its memory and CPU time are its own. Over its standard
//! input and output it speaks lines of JSON:
//!
//! ```text
//! child:  {"runtime": "onnxruntime 1.31.1"}                       once it can be asked
//! parent: {"task": "run", "count": 20}
//! child:  {"figures": {"wall": [0.0101, ...], "cpu": [0.0100]}}   or {"error": "..."}
//! ```
//!
//! A child ends when its standard input does. While it waits for a request it does nothing, so that the other side has
//! the machine for itself: this is how two programs are measured in turns.

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child as Process, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a child may take to end once its requests have.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a child is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    /// The work, by a name that both sides know.
    pub(crate) task: String,
    /// How often.
    #[serde(default = "once")]
    pub(crate) count: u32,
    /// Sites that are lost, where the work is an unmasking.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) lost: u32,
}

fn once() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Request {
    /// A piece of work, `count` times.
    pub(crate) fn new(task: &str, count: u32) -> Self {
        Self { task: task.to_owned(), count, lost: 0 }
    }
}

/// What a child measured, by name; seconds, unless the name says otherwise.
pub(crate) type Figures = BTreeMap<String, Vec<f64>>;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hello {
    runtime: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    Figures(Figures),
    Error(String),
}

/// A running child, ended when it is dropped.
pub(crate) struct Child {
    process: Process,
    requests: Option<ChildStdin>,
    replies: Lines<BufReader<ChildStdout>>,
    name: String,
    runtime: String,
}

impl Child {
    /// Starts a child and waits until it can be asked. Its errors go to our standard error.
    ///
    /// # Errors
    /// When it does not start or does not say what it is.
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}: {:?}", command.get_program()))?;
        let requests = process.stdin.take();
        let output = process.stdout.take().context("a piped output is there")?;
        let replies = BufReader::new(output).lines();
        let mut child = Self { process, requests, replies, name: name.to_owned(), runtime: String::new() };
        let line = child.line()?;
        let hello: Hello = serde_json::from_str(&line)
            .with_context(|| format!("expected {name} to say what it is, got {line:?}"))?;
        child.runtime = hello.runtime;
        Ok(child)
    }

    /// What the child says it is, with its version.
    pub(crate) fn runtime(&self) -> &str {
        &self.runtime
    }

    /// Lets the child work and waits for what it measured.
    ///
    /// # Errors
    /// When it ends, or says that it cannot.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Figures> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let requests = self.requests.as_mut().context("a running child takes requests")?;
        requests
            .write_all(line.as_bytes())
            .and_then(|()| requests.flush())
            .with_context(|| format!("{} does not take requests any more", self.name))?;
        let line = self.line()?;
        match serde_json::from_str(&line) {
            Ok(Reply::Figures(figures)) => Ok(figures),
            Ok(Reply::Error(error)) => bail!("{}: {error}", self.name),
            Err(_) => bail!("expected figures from {}, got {line:?}", self.name),
        }
    }

    fn line(&mut self) -> Result<String> {
        match self.replies.next() {
            Some(line) => line.with_context(|| format!("cannot read from {}", self.name)),
            None => match self.process.wait() {
                Ok(status) => bail!("{} ended with {status} before it answered; see above", self.name),
                Err(error) => Err(error).with_context(|| format!("{} is gone", self.name)),
            },
        }
    }

    /// The most memory that was resident so far, in bytes, where the system tells (Linux: `VmHWM`).
    pub(crate) fn peak_memory(&self) -> Option<f64> {
        self.memory("VmHWM:")
    }

    /// The memory that is resident now, in bytes, where the system tells (Linux: `VmRSS`).
    pub(crate) fn resident_memory(&self) -> Option<f64> {
        self.memory("VmRSS:")
    }

    fn memory(&self, field: &str) -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        memory_in(&status, field)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The end of its input tells it to go, and it may have files to remove; one that hangs is made to.
        drop(self.requests.take());
        let start = Instant::now();
        while start.elapsed() < PATIENCE && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A field of this process's own status in bytes, such as `VmHWM:`, where the system tells.
pub(super) fn own_memory(field: &str) -> Option<f64> {
    memory_in(&std::fs::read_to_string("/proc/self/status").ok()?, field)
}

/// A field of Linux's `/proc/<pid>/status` in bytes.
fn memory_in(status: &str, field: &str) -> Option<f64> {
    let line = status.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0)
}

/// The child's own part: says what it is, then answers requests until they end. A piece of work that fails is answered
/// with its error, and the next request is served.
///
/// # Errors
/// When a request is none, or nobody reads the answers.
pub(crate) fn serve(
    runtime: &str,
    requests: impl BufRead,
    replies: &mut dyn Write,
    work: &mut dyn FnMut(&Request) -> Result<Figures>,
) -> Result<()> {
    say(replies, &Hello { runtime: runtime.to_owned() })?;
    for line in requests.lines() {
        let line = line.context("cannot read the request")?;
        let request: Request =
            serde_json::from_str(&line).with_context(|| format!("expected a request, got {line:?}"))?;
        let reply = match work(&request) {
            Ok(figures) => Reply::Figures(figures),
            Err(error) => Reply::Error(format!("{error:#}")),
        };
        say(replies, &reply)?;
    }
    Ok(())
}

fn say(replies: &mut dyn Write, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    replies.write_all(line.as_bytes())?;
    Ok(replies.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    /// What a child answers to `requests`.
    fn answers(requests: &str) -> (Result<()>, Vec<String>) {
        let mut out = Vec::new();
        let ended = serve("test 1", requests.as_bytes(), &mut out, &mut |request| {
            if request.task == "fail" {
                bail!("cannot {}", request.task);
            }
            Ok(Figures::from([(request.task.clone(), vec![f64::from(request.count)])]))
        });
        let text = String::from_utf8(out).expect("JSON is text");
        (ended, text.lines().map(str::to_owned).collect())
    }

    #[test]
    fn each_request_gets_one_line() {
        let (ended, lines) =
            answers("{\"task\":\"run\",\"count\":3}\n{\"task\":\"fail\"}\n{\"task\":\"run\"}\n");
        assert!(ended.is_ok());
        assert_eq!(
            lines,
            [
                r#"{"runtime":"test 1"}"#,
                r#"{"figures":{"run":[3.0]}}"#,
                r#"{"error":"cannot fail"}"#,
                r#"{"figures":{"run":[1.0]}}"#,
            ]
        );
    }

    #[test]
    fn what_is_no_request_ends_the_child() {
        let (ended, lines) = answers("{\"task\":\"run\",\"times\":3}\n");
        assert!(format!("{:#}", ended.expect_err("no such field")).contains("expected a request"));
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn a_request_reads_as_it_was_written() {
        let request = Request { lost: 10, ..Request::new("unmask", 2) };
        let text = serde_json::to_string(&request).expect("strings and numbers");
        assert_eq!(text, r#"{"task":"unmask","count":2,"lost":10}"#);
        assert_eq!(serde_json::from_str::<Request>(&text).expect("our own"), request);
        let text = serde_json::to_string(&Request::new("mask", 1)).expect("strings and numbers");
        assert_eq!(text, r#"{"task":"mask","count":1}"#);
    }

    #[test]
    fn parent_and_child_understand_each_other() {
        let script = r#"echo '{"runtime":"sh 5"}'; read line; echo "{\"figures\":{\"wall\":[0.5]}}"; read line; echo '{"error":"tired"}'; read line; exit 3"#;
        let mut child = Child::start("the shell", &mut shell(script)).expect("a shell");
        assert_eq!(child.runtime(), "sh 5");
        let figures = child.ask(&Request::new("run", 1)).expect("figures");
        assert_eq!(figures["wall"], [0.5]);
        let error = child.ask(&Request::new("run", 1)).expect_err("an error");
        assert_eq!(error.to_string(), "the shell: tired");
        let error = child.ask(&Request::new("run", 1)).expect_err("the end");
        assert!(error.to_string().contains("ended with exit status: 3"), "{error}");
    }

    #[test]
    fn a_child_that_is_something_else_is_told() {
        let error = Child::start("the shell", &mut shell("echo hello; sleep 1")).err().expect("no child");
        assert!(error.to_string().contains("expected the shell to say what it is"), "{error}");
        let error = Child::start("the shell", &mut shell("exit 7")).err().expect("no child");
        assert!(error.to_string().contains("exit status: 7"), "{error}");
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tsh\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(memory_in(status, "VmHWM:"), Some(2_097_152.0));
        assert_eq!(memory_in(status, "VmRSS:"), Some(1_048_576.0));
        assert_eq!(memory_in(status, "VmSwap:"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_child_has_memory_of_its_own() {
        let child =
            Child::start("the shell", &mut shell(r#"echo '{"runtime":"sh"}'; read line"#)).expect("a shell");
        let (peak, now) =
            (child.peak_memory().expect("Linux tells"), child.resident_memory().expect("Linux tells"));
        assert!(peak >= now && now > 0.0, "{peak} {now}");
    }
}
