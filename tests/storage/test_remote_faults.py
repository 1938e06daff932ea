"""What a workspace in a bucket does when the service refuses, forgets, dies, or does not know us."""

import socket
import threading
import time
from datetime import timedelta

import pytest
from fixtures.artifacts import never, recipe, write_one

from unsupseg_cli.core.errors import UnsupsegError

PLACES = ["workspace.json", "claims/", "data.bin", "manifest.json", "published/", "current.json"]


def make(workspace):
    artifact, reused = workspace.produce(recipe(), write_one())
    assert not reused
    return artifact


def require_one_whole_copy(bucket, machine, artifact):
    assert len(bucket.keys("data.bin")) == len(bucket.keys("published/")) == 1
    assert machine("other").verify(artifact) == []
    assert machine("other").produce(recipe(), never)[1]
    assert machine("other").leftovers() == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", ["after", "twice"])
def test_an_answer_that_is_lost_or_comes_twice_changes_nothing(bucket, machine, place, fault):
    """The put succeeded; tried again it finds its own object. Twice done it is refused by what it did itself."""
    bucket.fail(1, "500 Internal Server Error", "InternalError", "PUT", place, **{fault: True})
    artifact = make(machine())
    assert [one.count for one in bucket.faults] == [0]
    require_one_whole_copy(bucket, machine, artifact)


def test_a_lost_answer_to_a_renewal_keeps_the_claim(bucket, machine):
    bucket.fail(2, "500 Internal Server Error", "InternalError", "PUT", "claims/", after=True)

    def slow(draft):
        time.sleep(1.2)  # two leases
        return write_one()(draft)

    artifact, _ = machine().produce(recipe(), slow)
    require_one_whole_copy(bucket, machine, artifact)


def test_throttling_is_waited_out(bucket, machine):
    for methods in ("PUT", "GET", "HEAD"):
        bucket.fail(2, methods=methods)
    said = []
    artifact = make(machine(tell=said.append))
    require_one_whole_copy(bucket, machine, artifact)
    assert "does not answer (503 SlowDown): trying again, at most 0:03:00" in said[0]
    assert any("answers again" in line for line in said)


def test_a_dead_endpoint_is_told_and_waited_for(bucket, machine):
    said, one = [], machine(tell=lambda line: said.append(line), lease=30)

    def dies(draft):
        bucket.stop()
        threading.Timer(2, bucket.start).start()
        return write_one()(draft)

    artifact, _ = one.produce(recipe(), dies)
    require_one_whole_copy(bucket, machine, artifact)
    assert any("does not answer (" in line for line in said)
    assert "answers again" in said[-1]


def test_an_endpoint_that_stays_dead_is_given_up_and_the_same_call_goes_on(bucket, machine):
    one = machine(lease=30)
    one.objects.patience = 1.0

    def dies(draft):
        bucket.stop()
        return write_one()(draft)

    begun = time.monotonic()
    with pytest.raises(UnsupsegError, match=r"did not answer for 0:00:01 .*then the same command goes on"):
        one.produce(recipe(), dies)
    assert time.monotonic() - begun < 20
    assert bucket.keys("published") == []
    bucket.start()
    artifact, reused = one.produce(recipe(), never)  # the draft is complete: only the publishing is left
    assert not reused
    assert machine("two").verify(artifact) == []


def test_an_endpoint_that_takes_requests_and_never_answers_is_given_up(bucket, machine, monkeypatch):
    monkeypatch.setattr("unsupseg_cli.storage.objects._REQUEST", timedelta(seconds=2))
    said = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        one = machine(tell=said.append)
        one.objects.patience = 3.0
        with pytest.raises(UnsupsegError, match=r"did not answer for 0:00:03 \("):
            one.exists()
    assert len(said) == 1


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (
            "403 Forbidden",
            "InvalidAccessKeyId",
            r"The credentials for 's3://.*' are wrong \(InvalidAccessKeyId\)",
        ),
        (
            "403 Forbidden",
            "SignatureDoesNotMatch",
            r"are wrong \(SignatureDoesNotMatch\): set them in the environment",
        ),
        ("403 Forbidden", "AccessDenied", r"The credentials do not allow this .*list, read, put and delete"),
        (
            "404 Not Found",
            "NoSuchBucket",
            r"There is no bucket 'test-.*' \(s3://\): make it, or mend the address",
        ),
        ("400 Bad Request", "InvalidRequest", r"refused a request \(InvalidRequest: "),
    ],
)
def test_what_no_try_mends_is_one_sentence_at_once(bucket, machine, status, code, said):
    bucket.fail(99, status, code)
    begun = time.monotonic()
    with pytest.raises(UnsupsegError, match=said):
        machine().produce(recipe(), write_one())
    assert time.monotonic() - begun < 5
    assert bucket.keys() == []


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "localhost:5599",
        "127.0.0.1:5599",
        "minio.example.com",
        "ftp://host",
        "http://",
        "http://a b",
        "http://a:99999",
    ],
)
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_that_is_no_address_of_a_server_is_refused(bucket, call, monkeypatch, variable, endpoint):
    monkeypatch.setenv(variable, endpoint)
    said = call("list", "--workspace", bucket.address(), code=2)[1]
    assert f"{variable} is '{endpoint}', which is no address of a server: expected http://HOST:PORT" in said


@pytest.mark.parametrize(
    ("scheme", "host", "said"),
    [
        ("http", "no-such-host.invalid", r"\(.*[Nn]ame.*\)"),
        ("https", None, r"\(https:// where the server speaks http://\)"),
    ],
)
def test_an_endpoint_that_cannot_be_right_is_not_waited_for(bucket, machine, monkeypatch, scheme, host, said):
    endpoint = f"{scheme}://{host or bucket.url.partition('//')[2]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    begun = time.monotonic()
    with pytest.raises(UnsupsegError, match=rf"cannot be reached at {endpoint} {said}: mend the endpoint"):
        machine().exists()
    assert time.monotonic() - begun < 10


def test_a_bucket_that_is_not_there_is_told_before_any_work(bucket, call, blocks):
    bucket.fail(99, "404 Not Found", "NoSuchBucket")
    out, err = call("extract", blocks, "--backbone", "untrained", "--workspace", bucket.address(), code=1)[:2]
    assert "There is no bucket" in err
    assert "images" not in out + err


def test_credentials_that_only_read_reuse_and_make_nothing(bucket, machine):
    artifact = make(machine("one"))
    bucket.fail(99, "403 Forbidden", "AccessDenied", "PUT DELETE")
    two = machine("two")
    reused, _ = two.produce(recipe(), never)
    assert (reused.path / "part" / "data.bin").read_text() == "hello"
    assert two.verify(artifact) == []
    with pytest.raises(UnsupsegError, match="do not allow this"):
        two.produce(recipe(config={}), write_one())
    assert len(bucket.keys("data.bin")) == 1


def test_without_credentials_or_the_package_it_is_said_what_is_missing(call, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("obstore"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    said = call("list", "--workspace", "s3://bucket/work", code=2)[1]
    assert "needs the package obstore: pip install 'unsupseg[cloud]'" in said
