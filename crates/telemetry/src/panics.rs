//! What a panic may say.

use std::io::Write as _;
use std::panic::PanicHookInfo;

/// From now on, panics of this process are reported by place and thread, and by message only where the message is a
/// literal of the source code: a formatted one, of a decoder in particular, may hold what it was decoding.
///
/// # Panics
/// Never; the hook itself drops what it cannot write.
pub fn hide_panic_messages() {
    std::panic::set_hook(Box::new(|panic| {
        let _ = std::io::stderr().write_all(report(panic).as_bytes());
    }));
}

fn report(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    // A literal cannot hold data; everything else is of another type.
    let message = panic.payload().downcast_ref::<&'static str>().copied();
    let message = message.unwrap_or("(message withheld: it may hold data of a patient)");
    format!("thread {name} panicked at {place}: {message}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn literals_are_shown_and_data_is_not() {
        let reports = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&reports);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| sink.lock().unwrap().push(report(panic))));
        let name = String::from("DOE^JANE");
        let formatted = std::panic::catch_unwind(|| panic!("cannot read {name}"));
        let literal = std::panic::catch_unwind(|| panic!("no such case"));
        std::panic::set_hook(before);
        assert!(formatted.is_err() && literal.is_err());
        let reports = reports.lock().unwrap();
        let ours: Vec<_> = reports.iter().filter(|report| report.contains("panics.rs")).collect();
        assert_eq!(ours.len(), 2);
        assert!(ours[0].contains("message withheld") && !ours[0].contains("JANE"), "{}", ours[0]);
        assert!(ours[1].contains("no such case"), "{}", ours[1]);
    }
}
