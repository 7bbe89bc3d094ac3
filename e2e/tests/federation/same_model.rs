//! The same seed gives the same model, whoever carries the messages.

use crate::fixture::{PLAIN, ROUNDS, SECURE, SECURE_ROUNDS, Undisturbed, federation, released, run, trained};
use medinet_lab::BrokerKind;

#[test]
fn mosquitto_in_the_place_of_the_broker_gives_the_same_model() {
    let mut federation = federation("mosquitto", BrokerKind::Mosquitto, ROUNDS, PLAIN);
    run(&mut federation, |_, _| Ok(())).unwrap();
    assert_eq!(released(&federation).unwrap(), Undisturbed::plain().model);
}

/// A sum under masks is exact, and each hospital's rounding follows from its own key and the round: of the same updates comes the same model,
/// whatever the masks were.
#[test]
fn mosquitto_carries_secure_aggregation_to_the_same_model() {
    let mut federation = federation("mosquitto-secure", BrokerKind::Mosquitto, SECURE_ROUNDS, SECURE);
    run(&mut federation, |_, _| Ok(())).unwrap();
    assert_eq!(trained(&federation), Undisturbed::secure().rounds);
    assert_eq!(released(&federation).unwrap(), Undisturbed::secure().model);
}
