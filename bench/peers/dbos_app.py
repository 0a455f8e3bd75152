"""The workloads of ../README.md on DBOS for Python: python3 dbos_app.py PORT ITS-DATABASE OURS

HTTP is the standard library's server, a thread per connection: a request costs it 0.3 ms.
"""
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import sqlalchemy
from dbos import DBOS, SetWorkflowID, SQLAlchemyDatasource

port, system, application = int(sys.argv[1]), sys.argv[2], sys.argv[3]
PAYLOAD = {"text": "x" * 89}  # 100 bytes of JSON

DBOS(config={"name": "bench", "system_database_url": system, "log_level": "ERROR"})
tables = SQLAlchemyDatasource.create(application)
with tables.engine.begin() as connection:
    connection.execute(sqlalchemy.text("CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, sum INTEGER NOT NULL)"))


@DBOS.step()
def echo(value):
    return value


@DBOS.workflow()
def steps(count):
    value = PAYLOAD
    for _ in range(count):
        value = echo(value)
    return count


ADD = sqlalchemy.text("INSERT INTO counter VALUES (:name, :amount) "
                      "ON CONFLICT (name) DO UPDATE SET sum = counter.sum + :amount RETURNING sum")


@tables.transaction(isolation_level="SERIALIZABLE" if application.startswith("sqlite") else "READ COMMITTED")
def add_to(name, amount):
    return tables.sql_session().execute(ADD, {"name": name, "amount": amount}).scalar_one()


@DBOS.workflow()
def add(name, amount):
    return add_to(name, amount)


class Door(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave together

    def do_POST(self):
        value = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match self.path.split("/")[1:]:
            case ["steps", "run100"]:
                call = lambda: steps(100)
            case ["steps", "run3"]:
                call = lambda: steps(3)
            case ["counter", name, "add"]:
                call = lambda: add(name, value)
        with SetWorkflowID(self.headers["Idempotency-Key"]):
            body = json.dumps(call()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


DBOS.launch()
ThreadingHTTPServer.request_queue_size = 1024
ThreadingHTTPServer(("127.0.0.1", port), Door).serve_forever()
