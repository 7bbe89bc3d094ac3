//! Mosquitto in the broker's place, with the files that the broker writes for it.

use crate::clients::{Rumqtt, Running, foreign, foreign_with, outcome, start};
use crate::fixture::{PATIENCE, Parties, settings, topic};
use medinet_broker::mosquitto;
use rumqttc::{QoS, SubscribeReasonCode};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

struct Mosquitto {
    parties: Parties,
    port: u16,
    _server: Running,
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

impl Mosquitto {
    async fn start() -> Self {
        Self::start_with(Parties::new()).await
    }

    async fn start_with(parties: Parties) -> Self {
        let mut settings = settings(&parties);
        // Free now; Mosquitto takes it a moment later.
        settings.listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let port = settings.listen.port();
        let acl = parties.path().join("acl");
        let files = mosquitto::files(&settings, &acl.display().to_string());
        // As root it would become another user, who cannot read the key of this one.
        let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
        let conf = parties.path().join("mosquitto.conf");
        std::fs::write(&conf, format!("{}log_type all\nuser {user}", files.conf)).unwrap();
        std::fs::write(&acl, files.acl).unwrap();
        let program = if Command::new("mosquitto").arg("-h").output().is_ok() {
            "mosquitto"
        } else {
            "/usr/sbin/mosquitto"
        };
        let log = std::fs::File::create(parties.path().join("log")).unwrap();
        let server = Command::new(program)
            .arg("-c")
            .arg(&conf)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Mosquitto is installed by `cargo xtask test`");
        let server = Running(server);
        let listens = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, listens).await.is_err() {
            panic!("{}", std::fs::read_to_string(parties.path().join("log")).unwrap());
        }
        Self { parties, port, _server: server }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.parties.path().join("log")).unwrap()
    }

    fn client(&self, principal: &str) -> Rumqtt {
        Rumqtt::new(&self.parties, self.port, principal, |_| {})
    }
}

#[tokio::test]
async fn parties_hear_and_say_what_they_may() {
    let mosquitto = Mosquitto::start().await;
    let granted = SubscribeReasonCode::Success(QoS::AtLeastOnce);
    let mut aggregator = mosquitto.client("aggregator:hub");
    assert_eq!(aggregator.subscribed(&topic("C/site/+/up/+")).await, granted);
    assert_eq!(aggregator.subscribed(&topic("C/site/+/status")).await, granted);
    let mut north = mosquitto.client("site:north");
    assert_eq!(north.subscribed(&topic("C/agg/+")).await, granted);
    assert_eq!(north.subscribed(&topic("C/site/north/down/+")).await, granted);

    // The first is forged, and Mosquitto drops it without a word: only the second arrives.
    let chunk = vec![1; 256 * 1024];
    let send = |client: &Rumqtt, to: &str, payload: &[u8]| {
        client.client.try_publish(topic(to), QoS::AtLeastOnce, false, payload).unwrap();
    };
    send(&north, "C/site/south/up/msg", b"forged");
    send(&north, "C/site/north/up/chunk", &chunk);
    let received = tokio::select! {
        message = aggregator.message() => message,
        _ = async { loop { north.packet().await.unwrap(); } } => unreachable!(),
    };
    assert_eq!((received.topic, received.payload), (topic("C/site/north/up/chunk"), chunk.into()));

    send(&aggregator, "C/site/north/up/msg", b"not the aggregator's to say");
    send(&aggregator, "B/agg/announce", b"another federation's");
    send(&aggregator, "C/site/north/down/msg", b"down");
    send(&aggregator, "C/agg/announce", b"announce");
    for expected in ["down", "announce"] {
        let received = tokio::select! {
            message = north.message() => message,
            _ = async { loop { aggregator.packet().await.unwrap(); } } => unreachable!(),
        };
        assert_eq!(received.payload, expected);
    }
}

#[tokio::test]
async fn nobody_overhears_others() {
    let mosquitto = Mosquitto::start().await;
    let mut hub = mosquitto.client("aggregator:hub");
    hub.subscribed(&topic("C/site/+/status")).await;
    // Mosquitto accepts the filter and delivers only what the rules allow.
    let curious = start(foreign(&mosquitto.parties, mosquitto.port, "mosquitto_sub", "site:south").args([
        "-q",
        "1",
        "-t",
        "medinet/#",
        "-C",
        "1",
        "-W",
        "20",
        "-v",
        "-i",
        "curious",
        "--will-topic",
        &topic("C/site/south/status"),
        "--will-payload",
        "gone",
        "--will-qos",
        "1",
    ]));
    let publishing = async {
        // The subscription may not stand yet.
        loop {
            for to in ["C/site/north/down/msg", "C/site/south/down/msg"] {
                let _ = hub.client.try_publish(topic(to), QoS::AtLeastOnce, false, "for one");
            }
            let answers = async { while hub.packet().await.is_ok() {} };
            let _ = tokio::time::timeout(Duration::from_millis(50), answers).await;
        }
    };
    let (good, out, error) = tokio::select! {
        outcome = outcome(curious) => outcome,
        () = publishing => unreachable!(),
    };
    assert!(good, "{error}");
    assert_eq!(out.trim(), format!("{} for one", topic("C/site/south/down/msg")));
}

#[tokio::test]
async fn strangers_and_the_revoked_are_refused() {
    let parties = Parties::new();
    parties.files("site:west");
    parties.revoke("site:west");
    let mosquitto = Mosquitto::start_with(parties).await;
    let others = Parties::new();
    for (files, passes) in [
        (mosquitto.parties.files("site:north"), true),
        (mosquitto.parties.files("site:west"), false),
        (others.files("site:north"), false),
    ] {
        let ca = mosquitto.parties.authority.certificate_path();
        let mut publish = foreign_with(&ca, &files, mosquitto.port, "mosquitto_pub");
        publish.args(["-q", "1", "-t", &topic("C/site/north/up/msg"), "-m", "x"]);
        let (passed, _, error) = outcome(start(&mut publish)).await;
        assert_eq!(passed, passes, "{}: {error}", files.certificate.display());
    }
}
