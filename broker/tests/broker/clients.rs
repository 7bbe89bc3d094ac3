//! Clients that others wrote: rumqttc, which MediNet's own programs use, and Mosquitto's.

use crate::fixture::{Fixture, PATIENCE, Parties, topic};
use medinet_identity::IdentityFiles;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, LastWill, MqttOptions, Packet,
    Publish, QoS, SubscribeReasonCode, TlsConfiguration, Transport,
};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// A foreign program that is killed when the test is over.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    pub(crate) fn output(mut self) -> Output {
        let mut output = Output { status: self.0.wait().unwrap(), stdout: Vec::new(), stderr: Vec::new() };
        let read = |from: Option<&mut dyn std::io::Read>, into: &mut Vec<u8>| {
            if let Some(from) = from {
                from.read_to_end(into).unwrap();
            }
        };
        read(self.0.stdout.as_mut().map(|s| s as _), &mut output.stdout);
        read(self.0.stderr.as_mut().map(|s| s as _), &mut output.stderr);
        output
    }
}

/// `mosquitto_pub` or `mosquitto_sub` as `principal`.
pub(crate) fn foreign(parties: &Parties, port: u16, program: &str, principal: &str) -> Command {
    let files = parties.files(principal);
    foreign_with(&files.ca, &files, port, program)
}

/// The same with any certificate, trusting `ca`.
pub(crate) fn foreign_with(ca: &Path, files: &IdentityFiles, port: u16, program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-V", "mqttv311"])
        .args([Path::new("--cafile"), ca])
        .args([Path::new("--cert"), &files.certificate, Path::new("--key"), &files.key])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub(crate) fn start(command: &mut Command) -> Running {
    Running(command.spawn().expect("Mosquitto's clients are installed by `cargo xtask test`"))
}

/// Waits for the program on a thread where waiting harms nobody.
pub(crate) async fn outcome(running: Running) -> (bool, String, String) {
    let output = tokio::task::spawn_blocking(|| running.output()).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

pub(crate) struct Rumqtt {
    pub(crate) client: AsyncClient,
    events: EventLoop,
}

impl Rumqtt {
    pub(crate) fn new(
        parties: &Parties,
        port: u16,
        principal: &str,
        change: impl FnOnce(&mut MqttOptions),
    ) -> Self {
        let mut options = MqttOptions::new(principal.replace(':', "-"), "127.0.0.1", port);
        let config = parties.identity(principal).client_config();
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)));
        options.set_keep_alive(Duration::from_secs(5)).set_max_packet_size(400_000, 400_000);
        change(&mut options);
        let (client, events) = AsyncClient::new(options, 100);
        Self { client, events }
    }

    pub(crate) async fn packet(&mut self) -> Result<Packet, ConnectionError> {
        loop {
            let event = tokio::time::timeout(PATIENCE, self.events.poll()).await.expect("nothing came");
            if let Event::Incoming(packet) = event? {
                return Ok(packet);
            }
        }
    }

    pub(crate) async fn message(&mut self) -> Publish {
        loop {
            if let Packet::Publish(publish) = self.packet().await.unwrap() {
                return publish;
            }
        }
    }

    pub(crate) async fn subscribed(&mut self, filter: &str) -> SubscribeReasonCode {
        self.client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        loop {
            if let Packet::SubAck(ack) = self.packet().await.unwrap() {
                return ack.return_codes[0];
            }
        }
    }
}

#[tokio::test]
async fn rumqttc_carries_chunks_both_ways_and_reconnects() {
    let fixture = Fixture::new();
    let mut aggregator = Rumqtt::new(&fixture.parties, fixture.port(), "aggregator:hub", |_| {});
    let granted = SubscribeReasonCode::Success(QoS::AtLeastOnce);
    assert_eq!(aggregator.subscribed(&topic("C/site/+/up/+")).await, granted);
    assert_eq!(aggregator.subscribed("#").await, SubscribeReasonCode::Failure);

    let mut site = Rumqtt::new(&fixture.parties, fixture.port(), "site:north", |options| {
        let status = topic("C/site/north/status");
        options.set_last_will(LastWill::new(status, "gone", QoS::AtLeastOnce, true)).set_clean_session(false);
    });
    assert_eq!(site.subscribed(&topic("C/site/north/down/+")).await, granted);
    let chunk = |index: u8| vec![index; 256 * 1024];
    let publishing = site.client.clone();
    let receiving = async {
        for index in 0..20 {
            let publish = aggregator.message().await;
            assert_eq!(
                (publish.topic, publish.payload),
                (topic("C/site/north/up/chunk"), chunk(index).into())
            );
        }
    };
    let sending = async {
        for index in 0..20 {
            let up = topic("C/site/north/up/chunk");
            publishing.publish(up, QoS::AtLeastOnce, false, chunk(index)).await.unwrap();
        }
        let mut acknowledged = 0;
        while acknowledged < 20 {
            if let Packet::PubAck(_) = site.packet().await.unwrap() {
                acknowledged += 1;
            }
        }
    };
    tokio::join!(receiving, sending);

    // A connection that breaks: the session and what came meanwhile is there after the next.
    site.events.clean();
    aggregator
        .client
        .publish(topic("C/site/north/down/msg"), QoS::ExactlyOnce, false, "later")
        .await
        .unwrap();
    while !matches!(aggregator.packet().await.unwrap(), Packet::PubComp(_)) {}
    assert!(matches!(site.packet().await.unwrap(), Packet::ConnAck(ack) if ack.session_present));
    assert_eq!(site.message().await.payload, "later");
}

#[tokio::test]
async fn rumqttc_is_told_why_it_is_refused() {
    let fixture = Fixture::new();
    let mut stranger = Rumqtt::new(&fixture.parties, fixture.port(), "site:stranger", |_| {});
    let refused = stranger.packet().await.unwrap_err();
    assert!(
        matches!(refused, ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized)),
        "{refused:?}"
    );
}

#[tokio::test]
async fn mosquittos_clients_exchange_messages() {
    let fixture = Fixture::new();
    let (parties, port) = (&fixture.parties, fixture.port());
    for (qos, client) in ["0", "1", "2"].iter().zip(["a", "b", "c"]) {
        let down = topic("C/site/north/down/msg");
        let subscribing = start(foreign(parties, port, "mosquitto_sub", "site:north").args([
            "-i",
            client,
            "-c",
            "-q",
            qos,
            "-t",
            &topic("C/site/north/down/+"),
            "-C",
            "2",
            "-W",
            "20",
            "-v",
        ]));
        // Retained messages tell when the subscription stands.
        let mut subscriptions = fixture.client_as("aggregator:hub", "probe", true).await;
        let mut sent = 0;
        fixture.until_broker(|broker| broker.connections() >= 2).await;
        let publishing = async {
            // The subscription may not stand yet; two of several messages are waited for.
            loop {
                sent += 1;
                subscriptions.publish(&down, b"from raw").await;
                let publishing = foreign(parties, port, "mosquitto_pub", "aggregator:hub")
                    .args(["-i", "pub", "-q", qos, "-t", &down, "-m", "from mosquitto"])
                    .spawn();
                let (good, _, error) = outcome(Running(publishing.unwrap())).await;
                assert!(good, "{error}");
            }
        };
        let (good, out, error) = tokio::select! {
            outcome = outcome(subscribing) => outcome,
            () = publishing => unreachable!(),
        };
        assert!(good, "{error}");
        let lines: Vec<&str> = out.lines().collect();
        let expected = [format!("{down} from raw"), format!("{down} from mosquitto")];
        assert_eq!(lines.len(), 2, "{out}");
        assert!(lines.iter().all(|line| expected.iter().any(|e| e == line)), "{out}");
        assert!(sent > 0);
        drop(subscriptions);
    }
}

#[tokio::test]
async fn mosquittos_clients_are_refused_by_the_rules() {
    let fixture = Fixture::new();
    let (parties, port) = (&fixture.parties, fixture.port());
    let subscribe = |principal: &str, filter: &str| {
        start(foreign(parties, port, "mosquitto_sub", principal).args(["-q", "1", "-t", filter, "-W", "5"]))
    };
    for (principal, filter) in [
        ("site:north", "#".to_owned()),
        ("site:north", "$SYS/#".to_owned()),
        ("site:north", format!("$share/g/{}", topic("C/agg/+"))),
        ("site:north", topic("C/site/south/down/+")),
        ("operator:ops", topic("C/site/+/up/+")),
        ("aggregator:hub", topic("B/site/+/up/+")),
    ] {
        let (_, _, error) = outcome(subscribe(principal, &filter)).await;
        assert!(error.contains("denied"), "{principal} {filter}: {error}");
    }
    let publish = |principal: &str, topic: &str| {
        start(foreign(parties, port, "mosquitto_pub", principal).args(["-q", "1", "-t", topic, "-m", "x"]))
    };
    let (good, _, error) = outcome(publish("site:north", &topic("C/site/north/up/msg"))).await;
    assert!(good, "{error}");
    let refused = fixture.broker.counters().publishes_refused;
    // Mosquitto's client reconnects and tries again for as long as it is let: it is stopped after its first refusal.
    let publishing = publish("site:north", &topic("C/site/south/up/msg"));
    fixture.until(|counted| counted.publishes_refused > refused).await;
    drop(publishing);
}

#[tokio::test]
async fn mosquittos_clients_without_our_certificate_are_refused() {
    let fixture = Fixture::new();
    let others = Parties::new();
    let mut no_certificate = Command::new("mosquitto_pub");
    no_certificate
        .args(["-h", "127.0.0.1", "-p", &fixture.port().to_string(), "-t", "t", "-m", "x", "--cafile"])
        .arg(fixture.parties.authority.certificate_path())
        .stderr(Stdio::piped());
    assert!(!outcome(start(&mut no_certificate)).await.0);

    let ca = fixture.parties.authority.certificate_path();
    let mut of_others = foreign_with(&ca, &others.files("site:north"), fixture.port(), "mosquitto_pub");
    of_others.args(["-t", "t", "-m", "x"]);
    assert!(!outcome(start(&mut of_others)).await.0);

    // A good one passes, over both versions of TLS.
    for version in ["tlsv1.2", "tlsv1.3"] {
        let mut good = foreign(&fixture.parties, fixture.port(), "mosquitto_pub", "site:north");
        good.args(["--tls-version", version, "-q", "1", "-t", &topic("C/site/north/up/msg"), "-m", "x"]);
        let (passed, _, error) = outcome(start(&mut good)).await;
        assert!(passed, "{version}: {error}");
    }
    assert_eq!(fixture.broker.counters().messages_in, 2);
}

#[tokio::test]
async fn mosquittos_client_of_mqtt_5_is_told_so() {
    let fixture = Fixture::new();
    let mut five = foreign(&fixture.parties, fixture.port(), "mosquitto_pub", "site:north");
    five.args(["-V", "mqttv5", "-t", &topic("C/site/north/up/msg"), "-m", "x"]);
    let (good, out, error) = outcome(start(&mut five)).await;
    assert!(!good);
    assert!(error.to_lowercase().contains("unsupported protocol version"), "{out} {error}");
}

#[tokio::test]
async fn mosquittos_client_leaves_its_will() {
    let fixture = Fixture::new();
    let mut operator = fixture.client("operator:ops").await;
    operator.subscribe(&topic("C/site/+/status"), 1).await;
    let mut site = foreign(&fixture.parties, fixture.port(), "mosquitto_sub", "site:north");
    let status = topic("C/site/north/status");
    site.args(["-t", &topic("C/agg/+"), "--will-topic", &status, "--will-payload", "gone", "--will-retain"]);
    let site = start(&mut site);
    fixture.until_broker(|broker| broker.connections() >= 2).await;
    drop(site);
    let message = operator.message().await;
    assert_eq!((message.topic, message.payload), (status, b"gone".to_vec()));
}
