# Builds the do-nothing server in C++: make -f benchmarks/floor.mk (from the root of the checkout).
# Debian: apt-get install g++ make pkg-config protobuf-compiler libprotobuf-dev libgrpc++-dev
PROTOS := protos/semroute/extproc/v1

build/floor/floor: benchmarks/floor.cc $(PROTOS)/external_processor.proto
	mkdir -p build/floor
	pkg-config --exists --print-errors grpc++ protobuf
	protoc -I$(PROTOS) --cpp_out=build/floor $(PROTOS)/external_processor.proto
	g++ -O2 -std=c++17 -Ibuild/floor $< build/floor/external_processor.pb.cc -o $@ \
	  $$(pkg-config --cflags --libs grpc++ protobuf)
