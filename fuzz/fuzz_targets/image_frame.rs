//! A compressed frame, for every codec.
#![no_main]

use std::panic::set_hook;

// Foreign decoders may panic; what calls them catches it. A panic that nobody catches ends the program all the same.
libfuzzer_sys::fuzz_target!(init: set_hook(Box::new(|_| {})), |bytes: &[u8]| medinet_fuzz_targets::image_frame(bytes));
