// The transport's floor in C++: an external processor on gRPC that reads, answers and decides nothing.
//
//   floor unix:/path HEX HEX
//
// The arguments are the replies to a request's headers and to its body, serialised, in hexadecimal: the
// same bytes that the do-nothing servers in Python send. benchmarks/floor.mk builds it, `semroute bench` runs it.

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <cstddef>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "external_processor.pb.h"

namespace {

using Replies = std::vector<grpc::ByteBuffer>;

// One stream: read a message, parse it as a processor must, send the reply that is next.
class Exchange final : public grpc::ServerGenericBidiReactor {
 public:
  explicit Exchange(const Replies& replies) : replies_(replies) { StartRead(&request_); }

  void OnReadDone(bool ok) override {
    if (!ok) {
      Finish(grpc::Status::OK);
      return;
    }
    semroute::extproc::v1::ProcessingRequest message;
    grpc::ProtoBufferReader reader(&request_);
    if (next_ == replies_.size() || !message.ParseFromZeroCopyStream(&reader)) {
      Finish(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "not the headers or the body of a request"));
      return;
    }
    reply_ = replies_[next_++];
    StartWrite(&reply_);
  }

  void OnWriteDone(bool) override { StartRead(&request_); }  // of a broken stream, the read ends it

  void OnDone() override { delete this; }

 private:
  const Replies& replies_;
  std::size_t next_ = 0;
  grpc::ByteBuffer request_, reply_;
};

class DoNothing final : public grpc::CallbackGenericService {
 public:
  explicit DoNothing(Replies replies) : replies_(std::move(replies)) {}

  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    return new Exchange(replies_);
  }

 private:
  const Replies replies_;
};

grpc::ByteBuffer FromHex(const std::string& hex) {
  std::string bytes;
  for (std::size_t at = 0; at + 1 < hex.size(); at += 2) {
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(at, 2), nullptr, 16)));
  }
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::cerr << "usage: floor unix:/path HEX HEX\n";
    return 2;
  }
  DoNothing service({FromHex(arguments[2]), FromHex(arguments[3])});
  grpc::ServerBuilder builder;
  builder.AddListeningPort(arguments[1], grpc::InsecureServerCredentials());
  builder.RegisterCallbackGenericService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (!server) {
    std::cerr << "floor: cannot listen on " << arguments[1] << "\n";
    return 1;
  }
  server->Wait();
}
