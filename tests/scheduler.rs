//! The scheduler alone, in this process.

mod common;

use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Fake, PATIENCE, wait_for};
use emberd::daemon::config::Model;
use emberd::governor::{Admission, Decision, Handle, Sample};
use emberd::scheduler::backend::{Finish, Input, Sampling};
use emberd::scheduler::{Answer, Code, Failure, Options, Priority, Request, Scheduler, Ticket, Update};

struct Bench {
    dir: tempfile::TempDir,
    governor: Handle,
    scheduler: Scheduler,
    thread: Option<JoinHandle<()>>,
    exited: Receiver<()>,
}

fn start(options: Options) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let model = Model { path: dir.path().join("journal"), context: 200, ..Model::default() };
    let governor = Handle::new(Decision::unlimited(1, 64));
    let (ready, loaded) = channel();
    let (ended, exited) = channel();
    let (scheduler, thread) = Scheduler::start(
        options,
        governor.clone(),
        move || Ok(Box::new(Fake::new(&model))),
        move |result| ready.send(result).unwrap(),
        move || ended.send(()).unwrap(),
    )
    .unwrap();
    loaded.recv_timeout(PATIENCE).unwrap().unwrap();
    Bench { dir, governor, scheduler, thread: Some(thread), exited }
}

impl Bench {
    fn request(prompt: &str) -> Request {
        let input = Input::Raw(prompt.into());
        let (client, priority, sampling, deadline) = Default::default();
        Request { id: prompt.into(), client, priority, input, sampling, deadline }
    }

    fn submit(&self, prompt: &str) -> Result<Ticket, Failure> {
        self.scheduler.submit(Bench::request(prompt), Box::new(|| {}))
    }

    fn submit_as(&self, client: &str, priority: Priority, prompt: &str) -> Result<Ticket, Failure> {
        let request = Request { client: Some(client.into()), priority, ..Bench::request(prompt) };
        self.scheduler.submit(request, Box::new(|| {}))
    }

    /// What ran, in order.
    fn ran(&self) -> Vec<String> {
        let starts = self.journal();
        starts.lines().filter_map(|line| Some(line.strip_prefix("start ")?.to_owned())).collect()
    }

    fn journal(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("journal")).unwrap_or_default()
    }

    fn wait_journal(&self, line: &str) {
        wait_for(line, || self.journal().contains(line).then_some(()));
    }

    fn release(&self) {
        std::fs::write(self.dir.path().join("release"), "").unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.scheduler.drain(Duration::ZERO);
        self.exited.recv_timeout(PATIENCE).expect("the end of the engine thread");
        self.thread.take().unwrap().join().unwrap();
    }
}

fn end(ticket: &Ticket) -> Result<Answer, Failure> {
    wait_for("the end of a request", || ticket.take().ended)
}

const WIDE: Options = Options { depth: 4, max_tokens: 100 };

#[test]
fn positions_move_up_when_others_leave() {
    let bench = start(WIDE);
    let first = bench.submit("first @hold").unwrap();
    bench.wait_journal("start first");
    let (second, third) = (bench.submit("second").unwrap(), bench.submit("third").unwrap());
    assert_eq!(third.take(), Update { queued: Some(2), ..Update::default() });
    drop(second);
    assert_eq!(third.take(), Update { queued: Some(1), ..Update::default() });
    assert!(third.take().is_empty());
    bench.release();
    assert_eq!(end(&third).unwrap().text, "You said: third");
    assert_eq!(end(&first).unwrap().text, "You said: first @hold");
    assert!(!bench.journal().contains("second"));
}

#[test]
fn a_full_queue_is_busy_and_says_until_when() {
    let bench = start(Options { depth: 0, max_tokens: 100 });
    let first = bench.submit("@hold").unwrap();
    let busy = bench.submit("second").err().unwrap();
    assert_eq!(busy.code, Code::Busy);
    assert!((1..=3600).contains(&busy.retry_after_s.unwrap()));
    bench.release();
    end(&first).unwrap();
    // Who has seen the end finds the place free.
    assert_eq!(end(&bench.submit("second").unwrap()).unwrap().text, "You said: second");
}

#[test]
fn an_answer_knows_its_counts_and_times() {
    let bench = start(WIDE);
    let ticket = bench.submit("one two three").unwrap();
    let answer = end(&ticket).unwrap();
    assert_eq!((answer.finish, answer.prompt_tokens, answer.completion_tokens), (Finish::Stop, 13, 5));
    assert!(answer.timings.decode_per_s > 0.0 && answer.timings.prefill_per_s > 0.0, "{:?}", answer.timings);
    let few = Request { sampling: Sampling { max_tokens: Some(2), ..Sampling::default() }, ..Bench::request("a b c") };
    let answer = end(&bench.scheduler.submit(few, Box::new(|| {})).unwrap()).unwrap();
    assert_eq!((answer.finish, answer.completion_tokens), (Finish::Length, 2));
    // The scheduler's own limit, and the context's.
    assert_eq!(end(&bench.submit(&"x ".repeat(90)).unwrap()).unwrap().completion_tokens, 20);
    assert_eq!(end(&bench.submit(&"x".repeat(200)).unwrap()).unwrap_err().code, Code::TooLarge);
}

#[test]
fn a_waiting_request_expires_while_another_runs() {
    let bench = start(WIDE);
    let running = bench.submit("@hold").unwrap();
    bench.wait_journal("start @hold");
    let late = Request { deadline: Some(Instant::now() + Duration::from_millis(50)), ..Bench::request("late") };
    let late = bench.scheduler.submit(late, Box::new(|| {})).unwrap();
    assert_eq!(end(&late).unwrap_err().code, Code::Expired);
    assert!(running.take().ended.is_none());
    assert!(!bench.journal().contains("late"));
}

#[test]
fn the_heart_beats_while_idle_and_while_busy() {
    let bench = start(WIDE);
    let beats = || {
        let before = bench.scheduler.heartbeat();
        wait_for("a heartbeat", || (bench.scheduler.heartbeat() > before + 1).then_some(()));
    };
    beats();
    let _ticket = bench.submit("@hold").unwrap();
    bench.wait_journal("start @hold");
    beats();
}

#[test]
fn draining_fails_those_that_wait_and_cuts_the_running_one_at_its_limit() {
    let bench = start(WIDE);
    let running = bench.submit("@hold").unwrap();
    bench.wait_journal("start @hold");
    let waiting = bench.submit("waiting").unwrap();
    bench.scheduler.drain(PATIENCE);
    assert_eq!(end(&waiting).unwrap_err().code, Code::ShuttingDown);
    assert_eq!(bench.submit("late").err().unwrap().code, Code::ShuttingDown);
    assert!(running.take().ended.is_none());
    bench.scheduler.drain(Duration::ZERO);
    assert_eq!(end(&running).unwrap_err().code, Code::ShuttingDown);
}

/// Heat and memory refuse before the queue does, and let those that run go on.
#[test]
fn what_the_governor_does_not_admit_is_refused_with_a_time() {
    let bench = start(WIDE);
    let admit = |admission| {
        let decision = Decision { admission, ..Decision::unlimited(1, 64) };
        bench.governor.publish(&Sample::default(), decision, None);
    };
    let running = bench.submit("@hold").unwrap();
    bench.wait_journal("start @hold");
    for (admission, code) in [(Admission::Overheated, Code::Overheated), (Admission::LowMemory, Code::LowMemory)] {
        admit(admission);
        let refused = bench.submit("more").err().unwrap();
        assert_eq!(refused.code, code);
        assert!(refused.retry_after_s.is_some());
        assert_eq!(bench.scheduler.admits(&Bench::request("more"), 0, 0).unwrap_err().code, code);
    }
    bench.release();
    assert!(end(&running).is_ok());
    // What fits is answered, with as many tokens as there is room for; what would fit the context alone is not.
    admit(Admission::Positions(50));
    assert_eq!(end(&bench.submit(&"x ".repeat(22)).unwrap()).unwrap().completion_tokens, 6);
    let refused = end(&bench.submit(&"x".repeat(50)).unwrap()).unwrap_err();
    assert_eq!(refused.code, Code::LowMemory);
    assert!(refused.message.contains("50 tokens") && refused.retry_after_s.is_some(), "{refused:?}");
    assert_eq!(end(&bench.submit(&"x".repeat(200)).unwrap()).unwrap_err().code, Code::TooLarge);
    admit(Admission::Open);
    assert!(end(&bench.submit(&"x".repeat(50)).unwrap()).is_ok());
}

/// One that overtakes all takes nobody's turn.
#[test]
fn clients_take_turns_whatever_overtakes_them() {
    let bench = start(Options { depth: 10, max_tokens: 100 });
    let first = bench.submit("first @hold").unwrap();
    bench.wait_journal("start first");
    let of_a = |prompt| bench.submit_as("a", Priority::Normal, prompt).unwrap();
    let many = ["a1", "a2", "a3", "a4"].map(of_a);
    let urgent = bench.submit_as("a", Priority::High, "a5 @hold").unwrap();
    drop(first);
    bench.wait_journal("start a5");
    let other = bench.submit_as("b", Priority::Normal, "b1").unwrap();
    bench.release();
    many.iter().chain([&urgent, &other]).for_each(|ticket| drop(end(ticket).unwrap()));
    assert_eq!(bench.ran()[1..], ["a5 @hold", "a1", "b1", "a2", "a3", "a4"]);
}

#[test]
fn what_was_taken_back_costs_no_turn() {
    let bench = start(Options { depth: 10, max_tokens: 100 });
    let first = bench.submit("first @hold").unwrap();
    bench.wait_journal("start first");
    let of = |client, prompt| bench.submit_as(client, Priority::Normal, prompt).unwrap();
    drop(["a1", "a2", "a3"].map(|prompt| of("a", prompt)));
    let tickets = [of("b", "b1"), of("b", "b2"), of("b", "b3"), of("a", "a4")];
    bench.release();
    tickets.iter().chain([&first]).for_each(|ticket| drop(end(ticket).unwrap()));
    assert_eq!(bench.ran()[1..], ["b1", "a4", "b2", "b3"]);
}

/// Three quarters of the queue, however many ask.
#[test]
fn a_client_leaves_a_quarter_of_the_queue_to_others() {
    let bench = start(WIDE);
    let _first = bench.submit("first @hold").unwrap();
    bench.wait_journal("start first");
    let of = |client, prompt| bench.submit_as(client, Priority::Normal, prompt);
    let _three = ["1", "2", "3"].map(|prompt| of("a", prompt).unwrap());
    let busy = of("a", "4").err().unwrap();
    assert!(busy.code == Code::Busy && busy.message.contains("share of the queue is 3"), "{busy}");
    of("b", "5").unwrap();
}

/// What is wrong with its form is found before it begins: a transport can still refuse it.
#[test]
fn a_malformed_form_never_starts() {
    let bench = start(WIDE);
    let ticket = bench.submit("@form").unwrap();
    bench.wait_journal("start @form");
    let begun = ticket.take().started;
    bench.release();
    assert_eq!(begun, None);
    let failure = end(&ticket).unwrap_err();
    assert_eq!((failure.code, failure.param.as_deref()), (Code::BadRequest, Some("grammar")));
}
