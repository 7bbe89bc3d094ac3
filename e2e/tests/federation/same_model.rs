//! The same seed gives the same model, whoever carries the messages.

use crate::fixture::{PLAIN, ROUNDS, federation, released, run, undisturbed};
use medinet_lab::BrokerKind;

#[test]
fn mosquitto_in_the_place_of_the_broker_gives_the_same_model() {
    let mut federation = federation("mosquitto", BrokerKind::Mosquitto, ROUNDS, PLAIN);
    run(&mut federation, |federation, _| federation.check_alive()).unwrap();
    assert_eq!(released(&federation).unwrap(), undisturbed());
}
