use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

fn fetcher() -> Fetcher {
    Fetcher::new(None).unwrap()
}

fn refusal(url: &str) -> Option<Forbidden> {
    // What is no address at all is refused before.
    let url = Url::parse(url).ok()?;
    Some(fetcher().check(&url).expect_err(url.as_str()))
}

#[test]
fn an_address_written_in_any_other_way_is_still_the_same_address() {
    for host in [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.1.",
        "0",
        "0.0.0.0",
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "%31%32%37.0.0.1",
        "127。0。0。1",
        "①②⑦.⓪.⓪.①",
        "１２７.0.0.1",
        "10.0.0.1",
        "192.168.0.1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[ff02::1]",
        "[::127.0.0.1]",
    ] {
        let found = refusal(&format!("https://{host}/clip.mp4"));
        assert!(matches!(found, Some(Forbidden::Address)), "{host}: {found:?}");
    }
}

#[test]
fn what_is_no_https_address_on_the_internet_is_refused() {
    for (url, why) in [
        ("http://example.com/a", Forbidden::Scheme),
        ("ftp://example.com/a", Forbidden::Scheme),
        ("file:///etc/passwd", Forbidden::Scheme),
        ("gopher://example.com/", Forbidden::Scheme),
        ("data:text/plain,a", Forbidden::Scheme),
        ("http://127.0.0.1:8080/", Forbidden::Scheme),
        ("https://user@example.com/", Forbidden::Credentials),
        ("https://user:pass@example.com/", Forbidden::Credentials),
        ("https://example.com@127.0.0.1/", Forbidden::Credentials),
        ("https://example.com:8443/", Forbidden::Port),
        ("https://example.com:22/", Forbidden::Port),
        ("https://example.com:80/", Forbidden::Port),
        ("https://localhost/", Forbidden::Host),
        ("https://LOCALHOST/", Forbidden::Host),
        ("https://localhost./", Forbidden::Host),
        ("https://a.localhost/", Forbidden::Host),
        ("https://redis/", Forbidden::Host),
        ("https://db.internal/", Forbidden::Host),
        ("https://metadata.google.internal/", Forbidden::Host),
        ("https://printer.local/", Forbidden::Host),
        ("https://example.com./", Forbidden::Host),
    ] {
        assert_eq!(refusal(url), Some(why), "{url}");
    }
    assert_eq!(refusal(&format!("https://example.com/{}", "a".repeat(2048))), Some(Forbidden::TooLong));
    for fine in ["https://example.com/a.mp4?key=1", "https://example.com:443/", "https://8.8.8.8/a", "https://köln.de/"]
    {
        assert_eq!(fetcher().check(&Url::parse(fine).unwrap()), Ok(()), "{fine}");
    }
}

#[test]
fn development_lets_one_port_of_this_machine_pass_and_nothing_beside_it() {
    let fetcher = Fetcher::new(Some(4000)).unwrap();
    let check = |url: &str| fetcher.check(&Url::parse(url).unwrap());
    assert_eq!(check("http://127.0.0.1:4000/a"), Ok(()));
    for near in [
        "http://127.0.0.1:4001/a",
        "http://127.0.0.1/a",
        "https://127.0.0.1:4000/a",
        "http://127.0.0.2:4000/a",
        "http://localhost:4000/a",
        "http://[::1]:4000/a",
        "http://u@127.0.0.1:4000/a",
        "http://0.0.0.0:4000/a",
    ] {
        assert!(check(near).is_err(), "{near}");
    }
}

/// A server of this machine that answers everybody alike and counts who came.
async fn server(answer: String) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let came = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&came);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let read = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..read]).to_lowercase();
                for ours in ["authorization", "cookie", "referer", "x-forwarded", "proxy"] {
                    assert!(!request.contains(ours), "{request}");
                }
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (port, came)
}

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
}

async fn fails(fetcher: &Fetcher, url: &str) -> FetchError {
    fetcher.open(&Url::parse(url).unwrap()).await.err().unwrap_or_else(|| panic!("{url} was fetched"))
}

#[tokio::test]
async fn a_redirect_into_a_private_network_is_not_followed() {
    let (secret, came) = server("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret".into()).await;
    for to in [
        format!("http://127.0.0.1:{secret}/"),
        format!("//127.0.0.1:{secret}/"),
        "https://169.254.169.254/latest/meta-data/".to_owned(),
        "https://[::ffff:169.254.169.254]/".to_owned(),
        "https://0x7f000001/".to_owned(),
        "http://example.com/".to_owned(),
        "https://user:pass@example.com/".to_owned(),
        "file:///etc/passwd".to_owned(),
    ] {
        let (port, _) = server(redirect(&to)).await;
        let error = fails(&Fetcher::new(Some(port)).unwrap(), &format!("http://127.0.0.1:{port}/")).await;
        assert!(matches!(error, FetchError::Forbidden(_)), "{to}: {error:?}");
    }
    assert_eq!(came.load(Ordering::SeqCst), 0, "nobody came to the private server");
}

#[tokio::test]
async fn an_address_that_leads_on_and_on_is_left_after_three() {
    let (port, came) = server(redirect("/again")).await;
    let error = fails(&Fetcher::new(Some(port)).unwrap(), &format!("http://127.0.0.1:{port}/")).await;
    assert!(matches!(error, FetchError::TooManyRedirects), "{error:?}");
    assert_eq!(came.load(Ordering::SeqCst), 1 + MOST_REDIRECTS);
    let (port, _) = server("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n".into()).await;
    let error = fails(&Fetcher::new(Some(port)).unwrap(), &format!("http://127.0.0.1:{port}/")).await;
    assert!(matches!(error, FetchError::BadRedirect), "{error:?}");
}

/// Answers one after another, the last one for ever.
struct Scripted {
    answers: Mutex<Vec<Vec<IpAddr>>>,
    asked: AtomicUsize,
}

impl Names for Scripted {
    fn look_up(&self, _name: String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        Box::pin(async move { Ok(answer) })
    }
}

fn scripted(answers: &[&[&str]]) -> (Fetcher, Arc<Scripted>) {
    let answers = answers.iter().map(|answer| answer.iter().map(|ip| ip.parse().unwrap()).collect()).collect();
    let names = Arc::new(Scripted { answers: Mutex::new(answers), asked: AtomicUsize::new(0) });
    (Fetcher::with(None, Arc::clone(&names) as _).unwrap(), names)
}

#[tokio::test]
async fn a_name_that_means_a_private_address_among_others_is_refused() {
    for answer in [
        &["127.0.0.1"][..],
        &["10.1.2.3"],
        &["169.254.169.254"],
        &["::1"],
        &["::ffff:127.0.0.1"],
        &["fd00:ec2::254"],
        &["93.184.216.34", "127.0.0.1"],
        &["127.0.0.1", "93.184.216.34"],
    ] {
        let (fetcher, names) = scripted(&[answer]);
        let error = fails(&fetcher, "https://rebind.example/").await;
        assert!(matches!(error, FetchError::Forbidden(Forbidden::Address)), "{answer:?}: {error:?}");
        assert_eq!(names.asked.load(Ordering::SeqCst), 1);
    }
}

/// The name is public when it is asked for and private a moment later: the connection goes to what was judged, because
/// the judging is the only time that anybody asks.
#[tokio::test]
async fn a_name_that_changes_its_meaning_is_asked_once_for_each_connection() {
    let (fetcher, names) = scripted(&[&["93.184.216.34"], &["127.0.0.1"]]);
    let url = Url::parse("https://rebind.example/").unwrap();
    let first = tokio::time::timeout(Duration::from_secs(8), fetcher.open(&url)).await;
    assert!(!matches!(first, Ok(Ok(_))), "nothing of that name is there");
    assert!(!matches!(first, Ok(Err(FetchError::Forbidden(_)))), "a public address is tried");
    assert_eq!(names.asked.load(Ordering::SeqCst), 1, "asked once, and not again for the connection");
    let error = fails(&fetcher, "https://rebind.example/").await;
    assert!(matches!(error, FetchError::Forbidden(Forbidden::Address)), "{error:?}");
    assert_eq!(names.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_systems_own_names_are_judged_as_well() {
    // Whatever the machine's own file of names says: this one means the machine itself.
    let judged = Judged(Arc::new(SystemNames));
    let found = judged.resolve("localhost".parse().unwrap()).await;
    assert!(found.is_err_and(|error| error.downcast_ref::<Forbidden>() == Some(&Forbidden::Address)));
}

#[tokio::test]
async fn a_file_arrives_with_the_last_part_of_its_address_as_its_name() {
    let (port, _) = server("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nbytes".into()).await;
    let fetcher = Fetcher::new(Some(port)).unwrap();
    let url = Url::parse(&format!("http://127.0.0.1:{port}/a/%2e%2e%2fK%C3%B6ln.mp4?key=secret#part")).unwrap();
    let fetched = fetcher.open(&url).await.unwrap();
    assert_eq!((fetched.size_bytes(), fetched.name().as_deref()), (Some(5), Some("../Köln.mp4")));
    let mut bytes = Vec::new();
    std::pin::pin!(fetched.into_reader()).read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"bytes");
}

#[test]
fn what_may_be_a_key_is_no_name() {
    let name = |path: &str| name_of(&Url::parse(&format!("https://a.example/{path}?name=a.mp4")).unwrap());
    for (path, found) in [("films/my%20film.mp4", "my film.mp4"), ("a.b.JPEG", "a.b.JPEG"), ("1+1.mov", "1+1.mov")] {
        assert_eq!(name(path).as_deref(), Some(found));
    }
    for key in
        ["", "s/8f14e45fceea167a5a36dedd4bea2543", "d/k.3", "k.signature", "k.12345", "k.a-b", "k.", ".mp4", "mp4"]
    {
        assert_eq!(name(key), None, "{key}");
    }
}

#[tokio::test]
async fn a_server_that_sends_byte_by_byte_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await;
        while stream.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let pace = Pace { window: Duration::from_millis(300), least_bytes: 1000 };
    let fetcher = Fetcher { pace, ..Fetcher::new(Some(port)).unwrap() };
    let fetched = fetcher.open(&Url::parse(&format!("http://127.0.0.1:{port}/")).unwrap()).await.unwrap();
    let error = std::pin::pin!(fetched.into_reader()).read_to_end(&mut Vec::new()).await.unwrap_err();
    assert!(super::super::pace::TooSlow::is_cause_of(&error), "{error}");
    let usual = Fetcher::new(None).unwrap().pace;
    assert!(usual.least_bytes > 0 && usual.window <= Duration::from_secs(60), "{usual:?}");
}

#[tokio::test]
async fn a_refusal_is_told_by_its_status_and_no_error_repeats_the_address() {
    let (port, _) = server("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".into()).await;
    let error = fails(&Fetcher::new(Some(port)).unwrap(), &format!("http://127.0.0.1:{port}/?key=secret")).await;
    assert!(matches!(error, FetchError::Status(StatusCode::FORBIDDEN)), "{error:?}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let error = fails(&Fetcher::new(Some(port)).unwrap(), &format!("http://127.0.0.1:{port}/?key=secret")).await;
    assert!(matches!(error, FetchError::Unreachable(_)), "{error:?}");
    assert!(!format!("{error:?} {}", crate::telemetry::chain(&error)).contains("secret"));
}
