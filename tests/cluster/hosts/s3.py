"""An S3 store for a host: moto's, with one bucket. It fails as the file `fault` beside its log
says: "503", or "cut", where half of every object is kept or sent. It is installed in a folder of
its own (`python -m tests.cluster.hosts.s3 install`), which all hosts import from."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
PACKAGES = Path(os.environ.get("SLIMSCOPE_TEST_S3", ROOT / ".cluster" / "s3"))
NEEDED = ("moto[server]", "s3fs")
PORT, BUCKET, ACCOUNT, LIST = 9000, "slimscope", "123456789012", "/stored"
CLIENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "SLIMSCOPE_ARTIFACTS": f"s3://{BUCKET}",
}


def failing(app: Callable[..., Iterable[bytes]], objects: Any, fault: Path) -> Callable[..., Any]:
    """The same application, which fails as the file says when it is asked."""

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        how = fault.read_text() if fault.exists() else ""
        if environ["PATH_INFO"] == LIST:  # nobody has to sign this
            start("200 OK", [])
            return ["\n".join(objects).encode()]
        if how == "503":
            start("503 Slow Down", [("Content-Length", "0")])
            return []
        said = list[str]()

        def hear(status: str, *given: Any) -> Any:
            said.append(status)
            return start(status, *given)

        body = b"".join(app(environ, hear))
        if how == "cut" and environ["REQUEST_METHOD"] == "PUT":
            key = objects.get(environ["PATH_INFO"].removeprefix(f"/{BUCKET}/"))
            key.value = key.value[: len(key.value) // 2]
        return [body[: len(body) // 2] if how == "cut" and "200" in said[0] else body]

    return answer


def main() -> None:
    from moto.s3.models import s3_backends  # here: in a folder of its own
    from moto.server import create_backend_app
    from werkzeug.serving import run_simple

    backend = s3_backends[ACCOUNT]["aws"]
    bucket = backend.create_bucket(BUCKET, "us-east-1")
    app = create_backend_app("s3")
    fault = Path(os.environ["SLIMSCOPE_DATA_DIR"]).with_name("fault")
    run_simple("0.0.0.0", PORT, failing(app, bucket.keys, fault), threaded=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["install"] and not PACKAGES.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", PACKAGES, *NEEDED]
        subprocess.run(pip, check=True)
    elif not sys.argv[1:]:
        main()
