//! A wire that can be cut, held, made to lose one answer, or hung with a [`Tripwire`], between a program and its
//! Postgres, its Redis or the sandbox.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::tripwire::{Side, Tripwire};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinHandle,
};

/// How the wire is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    /// Connections stay open, nothing passes: a network that is gone.
    Held,
    /// Connections are closed, new ones refused: a server that is gone.
    Cut,
}

/// What is to be lost: the answer to the next request that contains all of the words.
#[derive(Debug, Clone, Default)]
struct Loss {
    words: Option<Arc<[String]>>,
    /// How many in a row.
    times: usize,
    /// Answers of this kind are of no interest, such as the nothing of a blocking pop.
    but_not: &'static [u8],
}

impl Loss {
    /// `false`: all were lost before.
    fn count_down(&mut self) -> bool {
        let is_due = self.times > 0;
        self.times = self.times.saturating_sub(1);
        if self.times == 0 {
            self.words = None;
        }
        is_due
    }
}

/// Listens on a port of its own for one server. Dropping it cuts every connection.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: watch::Sender<State>,
    loss: watch::Sender<Loss>,
    lost: Arc<AtomicUsize>,
    /// Requests met whose answer is to be lost.
    armed: Arc<AtomicUsize>,
    strandings: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub async fn to(server_port: u16) -> Self {
        Self::through(server_port, None).await
    }

    /// Every request that passes is shown to the wire.
    pub async fn hung_with(server_port: u16, tripwire: &Arc<Tripwire>) -> Self {
        Self::through(server_port, Some(Arc::clone(tripwire))).await
    }

    async fn through(server_port: u16, tripwire: Option<Arc<Tripwire>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (state, loss) = (watch::Sender::new(State::Whole), watch::Sender::default());
        let (lost, armed) = (Arc::default(), Arc::default());
        let wire = Wire {
            state: state.subscribe(),
            loss: loss.clone(),
            lost: Arc::clone(&lost),
            armed: Arc::clone(&armed),
            tripwire,
            strandings: Arc::default(),
            made_at: 0,
        };
        let strandings = Arc::<AtomicUsize>::default();
        let now = Arc::clone(&strandings);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let wire = Wire { strandings: Arc::clone(&now), made_at: now.load(Ordering::SeqCst), ..wire.clone() };
                tokio::spawn(async move {
                    // Either end may break the connection at any time: that is what this is for.
                    let _broken = wire.serve(client, server_port).await;
                });
            }
        });
        Self { port, state, loss, lost, armed, strandings, accepting }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server does what the next request with these words asks; its answer never arrives and the connection is
    /// gone. For Postgres the words are of the statement's text, wherever it was prepared.
    pub fn lose_answer_to(&self, words: &str) {
        self.lose_answers_to(words, 1);
    }

    pub fn lose_answers_to(&self, words: &str, times: usize) {
        self.loss.send_replace(Loss { words: Some([words.to_owned()].into()), times, but_not: b"" });
    }

    /// The same of the next claim that takes something: a look at what nobody brought may come between.
    pub fn lose_answer_to_claim(&self) {
        let words = ["set state = 'running', run = j.run + 1".to_owned()].into();
        self.loss.send_replace(Loss { words: Some(words), times: 1, but_not: b"UPDATE 0\0" });
    }

    /// The next ids that a blocking pop takes off the lists of this lane never arrive. A pop that waits already when
    /// this is called would still get its answer: this returns once the next has been asked.
    pub async fn lose_popped_ids(&self, lane: &str) {
        let armed = self.armed.load(Ordering::SeqCst);
        let words = ["BLMPOP".to_owned(), format!(":{lane}:")].into();
        self.loss.send_replace(Loss { words: Some(words), times: 1, but_not: b"*-1\r\n" });
        let asked = || async { self.armed.load(Ordering::SeqCst) > armed };
        super::wait_until(Duration::from_secs(20), "a pop whose answer is to be lost", asked).await;
    }

    /// How many answers were lost so far.
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }

    pub fn hold(&self) {
        self.state.send_replace(State::Held);
    }

    /// A failover without a farewell: over the connections that are there nothing passes any more, and nobody closes
    /// them; new ones are whole.
    pub fn strand(&self) {
        self.strandings.fetch_add(1, Ordering::SeqCst);
    }

    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    pub fn mend(&self) {
        self.state.send_replace(State::Whole);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.accepting.abort();
    }
}

#[derive(Clone)]
struct Wire {
    state: watch::Receiver<State>,
    loss: watch::Sender<Loss>,
    lost: Arc<AtomicUsize>,
    armed: Arc<AtomicUsize>,
    tripwire: Option<Arc<Tripwire>>,
    strandings: Arc<AtomicUsize>,
    /// How many strandings there had been by then.
    made_at: usize,
}

/// What becomes of the answer to the request that has just passed.
enum Answer {
    /// Lost, unless this is in it.
    Lost { but_not: &'static [u8] },
    /// Kept back for ever: whoever waits for it is about to be killed.
    Withheld,
}

impl Wire {
    async fn serve(mut self, client: TcpStream, server_port: u16) -> io::Result<()> {
        if *self.state.borrow() == State::Cut {
            return Ok(());
        }
        let server = TcpStream::connect(("127.0.0.1", server_port)).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        // Says how answers are to be ignored, once a request is met whose answer is to be lost.
        let (armed, arm) = mpsc::unbounded_channel();
        let requests = self.clone().requests(from_client, to_server, armed);
        let answers = self.clone().answers(from_server, to_client, arm);
        tokio::select! {
            ended = requests => ended,
            ended = answers => ended,
            _ = self.state.wait_for(|state| *state == State::Cut) => Ok(()),
        }
    }

    async fn requests(
        mut self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        armed: mpsc::UnboundedSender<Answer>,
    ) -> io::Result<()> {
        let mut reader = Statements::default();
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut bytes).await?;
            if read == 0 {
                return Ok(());
            }
            self.passable().await;
            let executed = reader.executed(&bytes[..read]);
            let Loss { words, but_not, .. } = self.loss.borrow().clone();
            if let Some(words) = words
                && executed.iter().any(|text| words.iter().all(|word| text.contains(word)))
            {
                if armed.send(Answer::Lost { but_not }).is_err() {
                    return Ok(());
                }
                self.armed.fetch_add(1, Ordering::SeqCst);
            }
            match self.tripwire.as_ref().and_then(|tripwire| tripwire.met(&executed)) {
                None => {}
                Some(Side::Before) => return until_closed(&mut from, &mut bytes).await,
                Some(Side::After) if armed.send(Answer::Withheld).is_err() => return Ok(()),
                Some(Side::After) => {}
            }
            to.write_all(&bytes[..read]).await?;
        }
    }

    async fn answers(
        mut self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        mut arm: mpsc::UnboundedReceiver<Answer>,
    ) -> io::Result<()> {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut bytes).await?;
            if read == 0 {
                return Ok(());
            }
            self.passable().await;
            let is_done = async |from: &mut OwnedReadHalf, bytes: &mut [u8]| {
                // Until it is certain that the server has done it: nothing more comes.
                while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_millis(50), from.read(bytes)).await {}
            };
            match arm.try_recv() {
                Ok(Answer::Lost { but_not })
                    if (but_not.is_empty() || !bytes[..read].windows(but_not.len()).any(|part| part == but_not))
                        && self.loss.send_if_modified(Loss::count_down) =>
                {
                    is_done(&mut from, &mut bytes).await;
                    self.lost.fetch_add(1, Ordering::SeqCst);
                    return Ok(());
                }
                Ok(Answer::Withheld) => {
                    is_done(&mut from, &mut bytes).await;
                    if let Some(tripwire) = &self.tripwire {
                        tripwire.spring();
                    }
                    // The other direction ends with the process.
                    return std::future::pending().await;
                }
                Ok(Answer::Lost { .. }) | Err(_) => {}
            }
            to.write_all(&bytes[..read]).await?;
        }
    }

    async fn passable(&mut self) {
        // An error means that the proxy is gone; the connection ends with it.
        let _gone = self.state.wait_for(|state| *state != State::Held).await.map(drop);
        if self.made_at < self.strandings.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

/// Nothing passes any more until the client is gone.
async fn until_closed(from: &mut OwnedReadHalf, bytes: &mut [u8]) -> io::Result<()> {
    while from.read(bytes).await? > 0 {}
    Ok(())
}

/// Follows a connection's requests far enough to know which statements it executes.
#[derive(Default)]
struct Statements {
    pending: Vec<u8>,
    /// Startup messages carry no type; everything after them does.
    is_started: bool,
    is_http: bool,
    by_name: HashMap<Vec<u8>, String>,
}

impl Statements {
    /// The texts of what these bytes execute: Redis's commands as they stand, HTTP's first line, Postgres's by the
    /// statement that a Bind names.
    fn executed(&mut self, bytes: &[u8]) -> Vec<String> {
        if !self.is_started && self.pending.is_empty() && bytes.first() == Some(&b'*') {
            return vec![String::from_utf8_lossy(bytes).into_owned()];
        }
        if !self.is_started
            && let Some(line) = http_request_line(bytes)
        {
            self.is_http = true;
            return vec![line];
        }
        if self.is_http {
            return Vec::new();
        }
        self.pending.extend_from_slice(bytes);
        let mut executed = Vec::new();
        while let Some((kind, body)) = self.next_message() {
            match kind {
                b'P' => {
                    let mut parts = body.splitn(3, |byte| *byte == 0);
                    let name = parts.next().unwrap_or_default().to_vec();
                    let text = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
                    self.by_name.insert(name, text);
                }
                b'B' => {
                    let name = body.splitn(3, |byte| *byte == 0).nth(1).unwrap_or_default();
                    executed.extend(self.by_name.get(name).cloned());
                }
                b'Q' => executed.push(String::from_utf8_lossy(&body).into_owned()),
                _ => {}
            }
        }
        executed
    }

    fn next_message(&mut self) -> Option<(u8, Vec<u8>)> {
        const PROTOCOL_3: [u8; 4] = [0, 3, 0, 0];
        let head = usize::from(self.is_started);
        let length: [u8; 4] = self.pending.get(head..head + 4)?.try_into().expect("four bytes");
        let length = usize::try_from(u32::from_be_bytes(length)).expect("64 bits");
        if self.pending.len() < head + length {
            return None;
        }
        let message: Vec<u8> = self.pending.drain(..head + length).collect();
        let body = message[head + 4..].to_vec();
        if self.is_started {
            return Some((message[0], body));
        }
        self.is_started = body.starts_with(&PROTOCOL_3);
        Some((0, body))
    }
}

/// Heads are written in one piece by our client, with a body behind them or in pieces of its own.
fn http_request_line(bytes: &[u8]) -> Option<String> {
    const METHODS: [&[u8]; 5] = [b"GET ", b"POST ", b"PUT ", b"PATCH ", b"DELETE "];
    METHODS.iter().any(|method| bytes.starts_with(method)).then(|| {
        let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
        String::from_utf8_lossy(line).into_owned()
    })
}
